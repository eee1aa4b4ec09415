//! Opening an address in the user's browser.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::progress::line;

/// What opens an address: on Linux, and on macOS.
const PROGRAMS: [&str; 2] = ["xdg-open", "open"];
/// Such a program hands the address over and ends. One that is still there after this is the browser itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens an address, or says where to go where that is not possible: in a container or over SSH there is no browser.
pub(crate) async fn open(address: &str) {
    for program in PROGRAMS {
        let mut command = Command::new(program);
        command.arg(address).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let has_failed = match timeout(PATIENCE, command.status()).await {
            Ok(ended) => !ended.is_ok_and(|status| status.success()),
            Err(_) => false,
        };
        if !has_failed {
            return;
        }
    }
    line(&format!("No browser could be opened here; go to {address}"));
}
