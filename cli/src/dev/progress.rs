//! What the user sees while the stack starts: spinners on a terminal, plain lines elsewhere, always stderr.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Shows steps; several may run at once.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// Runs one step under its title.
    pub(crate) async fn step<T>(&self, title: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let started = Instant::now();
        let bar = self.bars.as_ref().map(|bars| bars.add(spinner(title)));
        if bar.is_none() {
            line(&format!("... {title}"));
        }
        let result = work.await;
        let mark = if result.is_ok() { "ok " } else { "!! " };
        let text = format!("{mark} {title} ({:.1} s)", started.elapsed().as_secs_f64());
        match bar {
            Some(bar) => {
                bar.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| plain()));
                bar.finish_with_message(text);
            }
            None => line(&text),
        }
        result
    }

    /// A line that is no step.
    pub(crate) fn note(&self, text: &str) {
        match &self.bars {
            Some(bars) if bars.println(text).is_ok() => {}
            _ => line(text),
        }
    }
}

fn plain() -> ProgressStyle {
    ProgressStyle::default_spinner()
}

fn spinner(title: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner}   {msg} ({elapsed})").unwrap_or_else(|_| plain()));
    bar.set_message(title.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Writes a line to stderr. A closed stderr must not end the stack, so that failure is let go.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes a line to stdout: the result of a command, not its progress.
pub(crate) fn result_line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
