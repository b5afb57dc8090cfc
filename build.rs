//! Compiles `cuda/*.cu` to PTX that the binary embeds (feature `cuda`); else does nothing.
//!
//! One PTX serves Maxwell to Hopper: nvcc 13 compiles to compute_75 at least, and writes a header
//! that only drivers of its own release take. The kernels use nothing that PTX 6.4 and sm_50 lack
//! (`scripts/test.sh` has ptxas of CUDA 12.8 assemble them for each architecture), so the header is
//! written anew and says just that. A source that needs more says so in its first line
//! (`// target: sm_80, PTX 7.0`), and is loaded where the card has it. `CNSE_CUDA_ARCH`, such as
//! `90`, compiles for one architecture and newer, and leaves the header as it is.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};

/// The oldest target of nvcc 13, and the one that is compiled to by default.
const VIRTUAL: u32 = 75;
/// What the header then says: CUDA 10.1 and Maxwell.
const HEADER: (&str, &str) = ("6.4", "sm_50");
/// Releases of nvcc that know C++17, compute_75 and these options; the tests have 13.0.
const RELEASES: std::ops::RangeInclusive<u32> = 11..=13;
const PACKAGES: &str = "nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
                        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for name in ["NVCC", "CUDA_HOME", "PATH", "CNSE_CUDA_ARCH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=cuda");
    let nvcc = find().unwrap_or_else(|| {
        fail(&format!(
            "the feature cuda needs nvcc, and neither NVCC nor CUDA_HOME nor PATH leads to one; \
             scripts/build.sh installs it, as does: pip install --no-deps --target DIR {PACKAGES} \
             (then CUDA_HOME=DIR/nvidia/cu13); or build without --features cuda"
        ))
    });
    let release = release(&nvcc);
    let major = release.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if !major.is_some_and(|major| RELEASES.contains(&major)) {
        fail(&format!(
            "{} is of release {release}; take one from {} to {}, such as {PACKAGES}",
            nvcc.display(),
            RELEASES.start(),
            RELEASES.end()
        ));
    }
    let asked = env::var("CNSE_CUDA_ARCH").ok().filter(|asked| !asked.is_empty());
    let arch = asked.as_deref().map_or(VIRTUAL, |text| {
        let digits = text.trim_start_matches("sm_").trim_start_matches("compute_");
        digits.parse().unwrap_or_else(|_| {
            fail(&format!("CNSE_CUDA_ARCH={text}: not an architecture such as 75, 80 or 90"))
        })
    });
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let mut sources: Vec<PathBuf> = fs::read_dir("cuda")
        .unwrap_or_else(|error| fail(&format!("reading the folder cuda: {error}")))
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    for source in sources {
        let ptx = out.join(source.file_stem().expect("it has a name")).with_extension("ptx");
        let needs = Needs::of(&source);
        compile(&nvcc, &source, &ptx, arch.max(needs.arch));
        if asked.is_none() {
            rewrite(&ptx, &needs);
        }
    }
    let target =
        asked.map_or_else(|| format!("{} and newer", HEADER.1), |_| format!("sm_{arch} and newer"));
    println!("cargo:rustc-env=CNSE_CUDA_COMPILED=nvcc {release}, for {target}");
}

fn find() -> Option<PathBuf> {
    if let Some(nvcc) = env::var_os("NVCC").filter(|nvcc| !nvcc.is_empty()) {
        return Some(PathBuf::from(nvcc));
    }
    let home = env::var_os("CUDA_HOME").filter(|home| !home.is_empty());
    let homes = home.iter().map(|home| Path::new(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = [PathBuf::from("/usr/local/cuda/bin")];
    let folders = homes.chain(env::split_paths(&path)).chain(usual);
    folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())
}

/// `13.0` of «Cuda compilation tools, release 13.0, V13.0.88».
fn release(nvcc: &Path) -> String {
    let output = Command::new(nvcc).arg("--version").output().unwrap_or_else(|error| {
        fail(&format!("{} cannot be run: {error}; set NVCC to one that can", nvcc.display()))
    });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let release = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    release.map_or_else(
        || fail(&format!("{} --version tells no release: {}", nvcc.display(), text.trim())),
        |release| release.trim().to_owned(),
    )
}

fn compile(nvcc: &Path, source: &Path, ptx: &Path, arch: u32) {
    let arch_flag = format!("-arch=compute_{arch}");
    // No contraction into fused multiply-add: a CPU twin has the same sums.
    let flags = ["-ptx", &arch_flag, "-std=c++17", "-fmad=false", "-Icuda", "-o"];
    let output = Command::new(nvcc).args(flags).arg(ptx).arg(source).output();
    let output = output.unwrap_or_else(|error| fail(&format!("{}: {error}", nvcc.display())));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        let hint = if said.contains("Unsupported gpu architecture") {
            "; this nvcc does not compile for that architecture: set CNSE_CUDA_ARCH to one that it \
             does, or take another nvcc"
        } else {
            ""
        };
        fail(&format!("nvcc refuses {}: {}{hint}", source.display(), said.trim()));
    }
    for line in said.lines().filter(|line| line.contains("warning")) {
        println!("cargo:warning={line}");
    }
}

/// The oldest that a source's kernels need.
struct Needs {
    arch: u32,
    target: String,
    version: String,
}

impl Needs {
    /// As its first line says, if it says anything.
    fn of(source: &Path) -> Needs {
        let text = fs::read_to_string(source)
            .unwrap_or_else(|error| fail(&format!("reading {}: {error}", source.display())));
        let line = text.lines().next().and_then(|line| line.strip_prefix("// target: "));
        let line = line.unwrap_or(HEADER.1);
        let (target, version) = line.split_once(", PTX ").unwrap_or((line, HEADER.0));
        let arch = target.strip_prefix("sm_").and_then(|digits| digits.parse().ok());
        let arch = arch
            .unwrap_or_else(|| fail(&format!("{}: the target {target} is none", source.display())));
        Needs { arch, target: target.to_owned(), version: version.to_owned() }
    }
}

/// Has the header say the oldest that the kernels need.
fn rewrite(ptx: &Path, needs: &Needs) {
    let text = fs::read_to_string(ptx)
        .unwrap_or_else(|error| fail(&format!("reading {}: {error}", ptx.display())));
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (word, value) in [(".version ", &needs.version), (".target ", &needs.target)] {
        let line = lines.iter_mut().find(|line| line.starts_with(word));
        let line = line.unwrap_or_else(|| fail(&format!("nvcc wrote no line {word}")));
        *line = format!("{word}{value}");
    }
    fs::write(ptx, lines.join("\n") + "\n")
        .unwrap_or_else(|error| fail(&format!("writing {}: {error}", ptx.display())));
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
