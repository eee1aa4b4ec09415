//! The only module that writes to the terminal.
//!
//! Data goes to stdout: a table or text for people, with `--json` one document. All else (progress, notes, warnings,
//! errors) goes to stderr, except that with `--json` an error is the document. The one exception is a run over the fleet
//! that is followed (`migrate`): with `--json` it writes a document a line while it goes.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use clap::error::ErrorKind;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::env;
use crate::failure::Failure;

type Sink = Box<dyn Write + Send>;

/// Where a command writes. Tests capture it.
pub struct Sinks {
    stdout: Sink,
    stderr: Sink,
    interactive: bool,
}

impl Sinks {
    /// The process's own.
    pub fn process() -> Self {
        Self {
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
            interactive: io::stderr().is_terminal() && io::stdin().is_terminal(),
        }
    }

    /// Two buffers in place of a terminal.
    pub fn captured() -> (Self, Captured) {
        let captured = Captured::default();
        let sinks = Self {
            stdout: Box::new(captured.stdout.clone()),
            stderr: Box::new(captured.stderr.clone()),
            interactive: false,
        };
        (sinks, captured)
    }
}

/// What a command wrote, for tests.
#[derive(Debug, Default)]
pub struct Captured {
    stdout: Buffer,
    stderr: Buffer,
}

impl Captured {
    /// What went to stdout.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What went to stderr.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }
}

#[derive(Debug, Default, Clone)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How one command shows its result.
pub struct Output {
    stdout: Mutex<Sink>,
    stderr: Mutex<Sink>,
    interactive: bool,
    json: bool,
    quiet: bool,
}

impl Output {
    /// Output in the form that was asked for.
    pub fn new(sinks: Sinks, json: bool, quiet: bool) -> Self {
        Self {
            stdout: Mutex::new(sinks.stdout),
            stderr: Mutex::new(sinks.stderr),
            interactive: sinks.interactive,
            json,
            quiet,
        }
    }

    /// Whether somebody sits at a terminal: only then may a command ask, or draw.
    pub fn is_interactive(&self) -> bool {
        self.interactive
    }

    /// Whether only data and errors are wanted.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Writes a command's result. Called once by each command that succeeds.
    pub fn data(&self, document: &impl Serialize, human: impl FnOnce() -> String) -> Result<(), Failure> {
        let text = if self.json {
            serde_json::to_string_pretty(document).map_err(|error| {
                Failure::failed("output_failed", format!("cannot write the result as JSON: {error}"))
            })?
        } else {
            human()
        };
        write_block(&self.stdout, &text).or_else(|error| match error.kind() {
            // The reader of a pipe (`| head -1`) has seen enough.
            io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(Failure::failed("output_failed", format!("cannot write the result: {error}"))),
        })
    }

    /// Whether programs read the output.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Writes one JSON document on a line of its own: for the few commands that say how it goes to programs, too.
    pub fn event(&self, document: &impl Serialize) {
        if let Ok(line) = serde_json::to_string(document) {
            // When the reader has gone, nobody is left to tell; the command goes on.
            let _ = write_block(&self.stdout, &line);
        }
    }

    /// Tells how it goes, unless `--quiet`.
    pub fn note(&self, line: impl AsRef<str>) {
        if !self.quiet {
            self.warn(line);
        }
    }

    /// Tells what has to be known, even with `--quiet`.
    pub fn warn(&self, line: impl AsRef<str>) {
        // When stderr is gone there is nobody left to tell.
        let _ = write_block(&self.stderr, &printable(line.as_ref()));
    }

    /// Shows why the command failed.
    pub fn failure(&self, failure: &Failure) {
        if self.json {
            let text = serde_json::to_string_pretty(&failure.document())
                .unwrap_or_else(|_| format!("{{\"error\":{{\"code\":\"{}\"}}}}", failure.code()));
            let _ = write_block(&self.stdout, &text);
        } else {
            for line in failure.lines() {
                self.warn(line);
            }
        }
    }

    /// Shows what clap has to say: help and version are data, a mistake is an error.
    pub fn clap(&self, error: &clap::Error) {
        let styled = error.render();
        if self.json && error.use_stderr() {
            let text = styled.to_string();
            let message = match error.kind() {
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a command is missing",
                // After what is wrong, a reminder of the usage follows.
                _ => text.split("\n\nUsage:").next().unwrap_or(&text),
            };
            let message = message.trim_start_matches("error: ").trim_end();
            self.failure(&Failure::usage("usage", message).hint("freehold --help"));
            return;
        }
        let (sink, terminal) = if error.use_stderr() {
            (&self.stderr, io::stderr().is_terminal())
        } else {
            (&self.stdout, io::stdout().is_terminal())
        };
        let text = if self.interactive && terminal && !env::no_color() {
            styled.ansi().to_string()
        } else {
            styled.to_string()
        };
        let _ = write_block(sink, text.trim_end());
    }
}

/// Writes a text and ends its last line.
fn write_block(sink: &Mutex<Sink>, text: &str) -> io::Result<()> {
    let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
    sink.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        sink.write_all(b"\n")?;
    }
    sink.flush()
}

/// A table with a header, or the sentence that stands for an empty one.
pub fn table(header: &[&str], rows: &[Vec<String>], empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    trimmed(&table.to_string())
}

/// Names and values, one pair a line.
pub fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in pairs {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<width$}  {}", printable(value));
    }
    trimmed(&text)
}

/// Takes the padding off a table, which would otherwise end up in whatever is copied from it.
fn trimmed(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// A text of somebody else's without control characters, so that a tenant's name cannot steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// A value as the API spells it, for example a state.
pub fn wire(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => "?".into(),
    }
}

/// An instant for people.
pub fn instant(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A value that may be missing.
pub fn optional(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_error_is_the_one_document_with_json() {
        let (sinks, captured) = Sinks::captured();
        let output = Output::new(sinks, true, false);
        output.note("working");
        output.failure(&Failure::failed("broken", "It broke").hint("mend it"));
        let document: Value = serde_json::from_str(&captured.stdout()).unwrap();
        assert_eq!(document, json!({"error": {"code": "broken", "message": "It broke", "hint": "mend it"}}));
        assert_eq!(captured.stderr(), "working\n");
    }

    #[test]
    fn an_error_leaves_stdout_empty_without_json() {
        let (sinks, captured) = Sinks::captured();
        let output = Output::new(sinks, false, true);
        output.note("working");
        output.failure(&Failure::failed("broken", "It broke").detail("here").hint("mend it"));
        assert_eq!(captured.stdout(), "");
        assert_eq!(captured.stderr(), "error: It broke\n  here\nhint: mend it\n");
    }

    #[test]
    fn an_empty_list_still_says_something() {
        let (sinks, captured) = Sinks::captured();
        let output = Output::new(sinks, false, false);
        output.data(&json!({}), || table(&["id"], &[], "No tenants.")).unwrap();
        assert_eq!(captured.stdout(), "No tenants.\n");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        let shown = fields(&[("name", "a\u{1b}[2Jb".into())]);
        assert!(!shown.contains('\u{1b}'));
        assert!(!table(&["a"], &[vec!["\u{7}".into()]], "").contains('\u{7}'));
    }
}
