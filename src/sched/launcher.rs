//! Who started this process as a rank, found out before anything of MPI is called.
//!
//! MPI itself cannot be asked: a process that another MPI's launcher started is "rank 0 of 1" to
//! the library that it is linked with, and each of N such processes would do the whole job. So what
//! the launcher wrote into the environment is read first, and held against what MPI says.

use std::fmt;

/// How this process was started, where a launcher started it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Ranks that were started.
    pub size: u32,
    /// Which of them this one is.
    pub rank: u32,
    /// What started them.
    pub launcher: Launcher,
}

/// What starts ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// Open MPI's mpirun.
    OpenMpi,
    /// mpiexec of MPICH and of those that descend from it.
    Hydra,
    /// Slurm's srun, speaking PMIx.
    SrunPmix,
    /// Slurm's srun, speaking PMI 1 or 2.
    SrunPmi,
    /// Something else that speaks PMIx.
    Pmix,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Launcher::OpenMpi => "Open MPI's mpirun",
            Launcher::Hydra => "MPICH's mpiexec",
            Launcher::SrunPmix => "srun --mpi=pmix",
            Launcher::SrunPmi => "srun --mpi=pmi2",
            Launcher::Pmix => "a launcher that speaks PMIx",
        })
    }
}

impl Launched {
    /// From the environment; None: nothing started this process as a rank.
    ///
    /// # Errors
    /// As `find`.
    pub fn from_environment() -> Result<Option<Launched>, String> {
        Launched::find(|name| std::env::var(name).ok())
    }

    /// From what a launcher writes into the environment. A job's shell has `SLURM_NTASKS` too, and
    /// is no rank; a step's process is one only if it has a rank of PMI or PMIx.
    ///
    /// # Errors
    /// One was started so that ranks cannot find one another, or what stands there is no number.
    pub fn find(
        lookup: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Option<Launched>, String> {
        let number = |name: &'static str| match lookup(name) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<u32>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(format!("{name}={text} in the environment is no number")),
            },
        };
        let is_step = lookup("SLURM_STEP_ID").is_some();
        let step_size = || match number("SLURM_STEP_NUM_TASKS")? {
            None => number("SLURM_NTASKS"),
            some => Ok(some),
        };
        let (pmix, pmi) = (number("PMIX_RANK")?, number("PMI_RANK")?);
        let mpirun = (number("OMPI_COMM_WORLD_RANK")?, number("OMPI_COMM_WORLD_SIZE")?);
        let (rank, size, launcher) = match (mpirun, pmi, pmix) {
            ((Some(rank), Some(size)), ..) => (rank, Some(size), Launcher::OpenMpi),
            (_, _, Some(rank)) if is_step => (rank, step_size()?, Launcher::SrunPmix),
            (_, Some(rank), _) => match (is_step, number("PMI_SIZE")?) {
                (false, size) => (rank, size, Launcher::Hydra),
                (true, None) => (rank, step_size()?, Launcher::SrunPmi),
                (true, size) => (rank, size, Launcher::SrunPmi),
            },
            (_, None, Some(rank)) => (rank, None, Launcher::Pmix),
            (_, None, None) => return without_pmi(is_step, step_size()?, number("SLURM_PROCID")?),
        };
        // PMIx itself tells the size only to whoever asks its server, which MPI_Init does.
        let size = match (size, launcher) {
            (Some(size), _) => size,
            (None, Launcher::Pmix) => return Ok(Some(Launched { size: 0, rank, launcher })),
            (None, _) => {
                return Err(format!("{launcher} said that this is rank {rank}, not of how many"));
            }
        };
        if rank >= size {
            return Err(format!("{launcher} said that this is rank {rank} of {size}"));
        }
        Ok(Some(Launched { size, rank, launcher }))
    }

    /// Whether it is more than one rank; a launcher that does not say how many is taken to have
    /// started several.
    pub fn is_many(&self) -> bool {
        self.size != 1
    }

    /// For a build that has no MPI.
    ///
    /// # Errors
    /// Several ranks were started, and each would do the whole job.
    pub fn refuse(&self) -> Result<(), String> {
        if !self.is_many() {
            return Ok(());
        }
        Err(format!(
            "this cnse was built without MPI, and {} started {} of it, each of which would do the \
             whole job; build it with cargo build --release --features mpi (scripts/build.sh does \
             it where it finds MPI), or run it once with --ranks N",
            self.launcher,
            if self.size == 0 { "several".to_owned() } else { self.size.to_string() },
        ))
    }

    /// Holds it against what MPI says after it was started: its ranks, this one's number, and the
    /// name of the library.
    ///
    /// # Errors
    /// They differ.
    pub fn check(&self, size: u32, rank: u32, library: &str) -> Result<(), String> {
        if self.is_many() && size == 1 && (self.size, self.rank) != (0, 0) {
            return Err(format!(
                "this cnse is linked with {library}, and was started by another MPI's launcher \
                 ({}): it sees itself alone, not as one of {} ranks; start it with the mpirun of \
                 the MPI that it is linked with, or build it with the mpicc of the other one",
                self.launcher,
                if self.size == 0 { "several".to_owned() } else { self.size.to_string() },
            ));
        }
        if (self.size != 0 && self.size != size) || self.rank != rank {
            return Err(format!(
                "{} said that this is rank {} of {}, and {library} that it is rank {rank} of {size}",
                self.launcher, self.rank, self.size
            ));
        }
        Ok(())
    }
}

/// A step of several tasks that have no way to find one another.
fn without_pmi(
    is_step: bool,
    size: Option<u32>,
    rank: Option<u32>,
) -> Result<Option<Launched>, String> {
    match (is_step, size, rank) {
        (true, Some(size), Some(_)) if size > 1 => Err(format!(
            "srun started {size} of this cnse, and no PMI by which they could find one another; \
             srun --mpi=pmix is for Open MPI, srun --mpi=pmi2 for MPICH (srun --mpi=list tells \
             which there are), and srun -n 1 runs it once, with --ranks N"
        )),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(environment: &str) -> Result<Option<Launched>, String> {
        let pairs: Vec<_> =
            environment.split(' ').filter_map(|word| word.split_once('=')).collect();
        let value = |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
        Launched::find(|name| value(name).map(|value| (*value).to_owned()))
    }

    #[test]
    fn who_started_it() {
        use Launcher::{Hydra, OpenMpi, Pmix, SrunPmi, SrunPmix};
        let table = [
            ("", None),
            ("SLURM_NTASKS=4 SLURM_JOB_ID=7 SLURM_PROCID=0", None),
            ("SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0", None),
            ("OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=3 PMIX_RANK=3", Some((4, 3, OpenMpi))),
            ("OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_RANK=0", Some((1, 0, OpenMpi))),
            // mpirun within an allocation, which starts its daemons with srun.
            (
                "OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=1 PMIX_RANK=1 SLURM_STEP_ID=0 \
                 SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=0",
                Some((4, 1, OpenMpi)),
            ),
            ("PMI_SIZE=8 PMI_RANK=7 MPI_LOCALNRANKS=8", Some((8, 7, Hydra))),
            ("PMIX_RANK=1 SLURM_STEP_ID=0 SLURM_NTASKS=4", Some((4, 1, SrunPmix))),
            (
                "PMIX_RANK=1 SLURM_STEP_ID=0 SLURM_NTASKS=9 SLURM_STEP_NUM_TASKS=2",
                Some((2, 1, SrunPmix)),
            ),
            ("PMI_RANK=1 PMI_SIZE=3 SLURM_STEP_ID=0 SLURM_NTASKS=9", Some((3, 1, SrunPmi))),
            ("PMI_RANK=1 SLURM_STEP_ID=0 SLURM_NTASKS=9", Some((9, 1, SrunPmi))),
            ("PMIX_RANK=5", Some((0, 5, Pmix))),
        ];
        for (environment, expected) in table {
            let expected = expected.map(|(size, rank, launcher)| Launched { size, rank, launcher });
            assert_eq!(find(environment), Ok(expected), "{environment}");
        }
    }

    #[test]
    fn what_cannot_be() {
        let table = [
            ("SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=2", "srun --mpi=pmix is for"),
            ("SLURM_STEP_ID=0 SLURM_NTASKS=4 SLURM_PROCID=2", "srun --mpi=pmix is for"),
            ("OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=4", "rank 4 of 4"),
            ("OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=x", "OMPI_COMM_WORLD_RANK=x in the"),
            ("PMI_RANK=1", "not of how many"),
        ];
        for (environment, text) in table {
            let error = find(environment).unwrap_err();
            assert!(error.contains(text), "{environment}: {error}");
        }
    }

    #[test]
    fn a_build_without_mpi_runs_once_only() {
        for (size, fine) in [(1, true), (2, false), (0, false)] {
            let launched = Launched { size, rank: 0, launcher: Launcher::Hydra };
            assert_eq!(launched.refuse().is_ok(), fine);
        }
    }

    #[test]
    fn what_mpi_says_is_held_against_it() {
        let library = "Open MPI v4.1.4";
        let table = [
            ((4, 2, Launcher::OpenMpi), (4, 2), None),
            ((1, 0, Launcher::OpenMpi), (1, 0), None),
            ((0, 0, Launcher::Pmix), (1, 0), None),
            ((0, 3, Launcher::Pmix), (4, 3), None),
            ((4, 2, Launcher::Hydra), (1, 0), Some("another MPI's launcher (MPICH's mpiexec)")),
            ((0, 3, Launcher::Pmix), (1, 0), Some("another MPI's launcher")),
            ((4, 2, Launcher::OpenMpi), (3, 2), Some("said that this is rank 2 of 4")),
        ];
        for ((size, rank, launcher), (world, me), expected) in table {
            let told = Launched { size, rank, launcher }.check(world, me, library);
            match expected {
                None => assert_eq!(told, Ok(())),
                Some(text) => assert!(told.unwrap_err().contains(text)),
            }
        }
    }
}
