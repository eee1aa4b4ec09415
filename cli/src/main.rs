//! The `freehold` command; all of it is in the library.

use std::process::ExitCode;

use freehold_cli::output::Sinks;

#[tokio::main]
async fn main() -> ExitCode {
    freehold_cli::install_crypto();
    freehold_cli::run(std::env::args_os(), Sinks::process()).await.into()
}
