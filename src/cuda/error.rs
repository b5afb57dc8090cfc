//! What can be wrong with a card.

use std::fmt;

/// Why a card is not used, or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The build has no feature `cuda`.
    NotBuilt,
    /// The command line says so.
    NotWanted,
    /// The driver's library cannot be opened.
    NoDriver {
        /// What the dynamic linker says.
        why: String,
    },
    /// There is a driver, and no card that it shows.
    NoDevice,
    /// There are fewer cards than that.
    NoSuchDevice {
        /// The one that was asked for, from 0.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// A call of the driver failed.
    Driver {
        /// The function.
        call: &'static str,
        /// Its result.
        code: i32,
        /// What the driver calls that result.
        name: String,
    },
    /// The driver does not take a family's PTX.
    Module {
        /// The family.
        family: &'static str,
        /// The result.
        code: i32,
        /// What the driver's compiler wrote.
        log: String,
    },
    /// A family has no such kernel.
    NoKernel {
        /// The family.
        family: &'static str,
        /// The kernel.
        kernel: String,
    },
    /// The card's memory, or what cnse may take of it, does not do.
    OutOfMemory {
        /// What was asked for, in bytes.
        asked: usize,
        /// What cnse holds already, in bytes.
        held: usize,
        /// What cnse may hold at most, in bytes.
        budget: usize,
        /// What the driver says is free, in bytes.
        free: usize,
    },
    /// Pinned memory of the host does not do.
    NoPinned {
        /// What was asked for, in bytes.
        asked: usize,
        /// What the arena may hold at most, in bytes.
        bound: usize,
    },
    /// What a kernel was given is not what it takes.
    Input(String),
}

impl Error {
    /// Whether there is no card for this process, and so nothing that failed.
    pub fn is_absence(&self) -> bool {
        matches!(
            self,
            Error::NotBuilt
                | Error::NotWanted
                | Error::NoDriver { .. }
                | Error::NoDevice
                | Error::NoSuchDevice { .. }
        )
    }

    /// Whether the card is lost to this process: after such a result the driver refuses all calls.
    pub fn is_fatal(&self) -> bool {
        match self {
            // Illegal address, launch timeout, hardware, assertion, ECC and context errors.
            Error::Driver { code, .. } => {
                matches!(code, 201 | 214 | 219..=221 | 226 | 700 | 702 | 709 | 710 | 714..=719)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotBuilt => {
                f.write_str("this build has no CUDA; build with --features cuda (scripts/build.sh)")
            }
            Error::NotWanted => f.write_str("--device cpu was given"),
            Error::NoDriver { why } => {
                write!(f, "there is no NVIDIA driver: {why}; install one that shows the card")
            }
            Error::NoDevice => f.write_str(
                "the NVIDIA driver shows no card; see nvidia-smi and CUDA_VISIBLE_DEVICES",
            ),
            Error::NoSuchDevice { ordinal, count } => {
                write!(f, "there is no cuda:{ordinal}; the driver shows {count} (from cuda:0)")
            }
            Error::Driver { call, code, name } => {
                write!(f, "{call} failed: {name} ({code})")?;
                match code {
                    46 => f.write_str("; another process has the card to itself"),
                    803 => f.write_str("; driver and kernel module differ: reboot, or reload it"),
                    _ => Ok(()),
                }
            }
            Error::Module { family, code, log } => {
                write!(f, "the driver does not take the kernels of {family} ({code}): {log}")?;
                if matches!(code, 209 | 218 | 222) {
                    f.write_str("; build with CNSE_CUDA_ARCH for this card, or update the driver")?;
                }
                Ok(())
            }
            Error::NoKernel { family, kernel } => write!(f, "{family} has no kernel {kernel}"),
            Error::OutOfMemory { asked, held, budget, free } => write!(
                f,
                "the card has no room for {} more: cnse holds {} of the {} that it may take, and \
                 {} are free; take smaller batches, or end what else uses the card",
                mebibytes(*asked),
                mebibytes(*held),
                mebibytes(*budget),
                mebibytes(*free)
            ),
            Error::NoPinned { asked, bound } => write!(
                f,
                "no {} of pinned memory: the arena has {} at most, and the host must let so much \
                 be locked (ulimit -l)",
                mebibytes(*asked),
                mebibytes(*bound)
            ),
            Error::Input(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_says_what_and_what_to_do() {
        let driver = |code| Error::Driver { call: "cuInit", code, name: "CUDA_ERROR_X".to_owned() };
        let ptx = |code| Error::Module { family: "sampling", code, log: "no".to_owned() };
        let memory = Error::OutOfMemory { asked: 1 << 30, held: 1 << 20, budget: 2 << 20, free: 0 };
        for (error, words) in [
            (Error::NotBuilt, "--features cuda"),
            (Error::NotWanted, "--device cpu"),
            (Error::NoDriver { why: "not there".to_owned() }, "no NVIDIA driver: not there"),
            (Error::NoDevice, "CUDA_VISIBLE_DEVICES"),
            (Error::NoSuchDevice { ordinal: 3, count: 1 }, "no cuda:3; the driver shows 1"),
            (driver(999), "cuInit failed: CUDA_ERROR_X (999)"),
            (driver(46), "another process has the card"),
            (driver(803), "reload it"),
            (ptx(222), "update the driver"),
            (ptx(1), "(1): no"),
            (Error::NoKernel { family: "a", kernel: "b".to_owned() }, "a has no kernel b"),
            (memory, "no room for 1024.0 MiB more: cnse holds 1.0 MiB of the 2.0 MiB"),
            (Error::NoPinned { asked: 1 << 20, bound: 0 }, "ulimit -l"),
            (Error::Input("too long".to_owned()), "too long"),
        ] {
            assert!(error.to_string().contains(words), "{error}");
            assert!(!error.is_fatal());
        }
        assert!(Error::NoDevice.is_absence() && !driver(46).is_absence());
        assert!(driver(700).is_fatal() && driver(719).is_fatal() && !driver(2).is_fatal());
    }
}
