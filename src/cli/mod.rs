//! The command line.

use std::process::ExitCode;

/// Runs the program; the whole of `main`.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
