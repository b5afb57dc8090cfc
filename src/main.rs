//! The `cnse` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cnse::cli::main()
}
