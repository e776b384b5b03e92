//! The `cloakroom` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    cloakroom::cli::main()
}
