//! Opening an address in the user's browser.

use std::process::{Command, Stdio};

use super::progress::line;

/// What opens an address: on Linux, and on macOS.
const PROGRAMS: [&str; 2] = ["xdg-open", "open"];

/// Opens an address, or says where to go where that is not possible: in a container or over SSH there is no browser.
pub(crate) fn open(address: &str) {
    let opened = PROGRAMS.iter().any(|program| {
        let mut command = Command::new(program);
        command.arg(address).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    });
    if !opened {
        line(&format!("No browser could be opened here; go to {address}"));
    }
}
