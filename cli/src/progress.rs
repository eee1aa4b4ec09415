//! How an operation's progress is shown: a moving line at a terminal, else a line for each change.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use freehold::api::platform::{Operation, OperationGroup, OperationProgress, OperationStep, StepState};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::follow;
use crate::output::{Output, printable};

const TICK: Duration = Duration::from_millis(100);

/// The display of one operation, on stderr. Wiped when dropped; the lines of finished steps stay.
pub struct Progress<'a> {
    output: &'a Output,
    bar: Option<ProgressBar>,
    shown: HashMap<String, StepState>,
    is_waiting: bool,
    /// When counting began, and how many were done by then.
    measured_from: Option<(Instant, u64)>,
    /// Whether each move is a line of JSON as well.
    events: bool,
}

impl<'a> Progress<'a> {
    /// A display that shows nothing yet.
    pub fn new(output: &'a Output) -> Self {
        let bar = (output.is_interactive() && !output.is_quiet()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { output, bar, shown: HashMap::new(), is_waiting: false, measured_from: None, events: false }
    }

    /// The same, with a line of JSON on stdout for each move.
    #[must_use]
    pub fn with_events(mut self, events: bool) -> Self {
        self.events = events;
        self
    }

    /// Shows how far the operation is.
    pub fn show(&mut self, operation: &Operation) {
        self.is_waiting = false;
        if self.events {
            self.output.event(&serde_json::json!({ "event": "operation", "operation": operation }));
        }
        let count = operation.steps.len();
        let mut under_way = None;
        for (position, step) in operation.steps.iter().enumerate() {
            if matches!(step.state, StepState::Running | StepState::Undoing) {
                under_way = Some((position, step));
            }
            if self.shown.insert(step.name.clone(), step.state) == Some(step.state) {
                continue;
            }
            // Migrations only go forward: what the engine calls undoing them does nothing.
            let undone = matches!(step.state, StepState::Undoing | StepState::Undone);
            if undone && operation.kind == follow::MIGRATE_FLEET {
                continue;
            }
            if let Some(told) = told(step) {
                self.line(&format!("[{}/{count}] {} {told}", position + 1, step.name));
            }
        }
        let message = match under_way {
            Some((position, step)) => {
                let far = operation.progress.as_ref().map_or_else(String::new, |progress| self.far(progress));
                format!("{} {}/{count}: {}{far}", operation.kind, position + 1, step.name)
            }
            None => operation.kind.clone(),
        };
        self.message(&message);
    }

    /// How far a long step is, with its rate and the time that is left at that rate.
    fn far(&mut self, progress: &OperationProgress) -> String {
        let (since, done_then) = *self.measured_from.get_or_insert_with(|| (Instant::now(), progress.done));
        let failed = if progress.failed > 0 { format!(", {} failed", progress.failed) } else { String::new() };
        let rate = progress.done.saturating_sub(done_then) as f64 / since.elapsed().as_secs_f64().max(0.001);
        let speed = if rate > 0.0 && progress.done < progress.total {
            let left = progress.total.saturating_sub(progress.done) as f64 / rate;
            format!(", {rate:.0}/s, {} left", HumanDuration(Duration::from_secs_f64(left.min(1e9))))
        } else {
            String::new()
        };
        format!(" {}/{}{failed}{speed}", progress.done, progress.total)
    }

    /// Shows how far a group of operations is.
    pub fn show_group(&mut self, group: &OperationGroup) {
        self.is_waiting = false;
        let failed = group.failed + group.needs_operator;
        let progress = OperationProgress { done: group.succeeded + failed, failed, total: group.total };
        let far = self.far(&progress);
        self.message(&format!("operations:{far}"));
    }

    /// Says once that there is nothing to show for now.
    pub fn waiting(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_waiting, true) {
            self.line(why);
        }
        self.message(why);
    }

    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.note(line)),
            None => self.output.note(line),
        }
    }

    fn message(&self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(printable(message));
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What a step's new state is worth saying. Beginning a step is not: the moving line shows it, and its end follows.
fn told(step: &OperationStep) -> Option<String> {
    let told = match step.state {
        StepState::Pending | StepState::Running => return None,
        StepState::Done => "done",
        StepState::Undoing => "is being undone",
        StepState::Undone => "undone",
        StepState::Failed => "failed",
    };
    let took = match (step.state, step.started_at, step.finished_at) {
        (StepState::Done, Some(started), Some(finished)) => {
            format!(" ({} ms)", (finished - started).num_milliseconds())
        }
        _ => String::new(),
    };
    Some(format!("{told}{took}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Sinks;
    use chrono::DateTime;
    use freehold::api::platform::OperationState;

    fn operation(steps: &[(&str, StepState)]) -> Operation {
        Operation {
            id: uuid::Uuid::from_u128(1),
            kind: "provision_tenant".into(),
            tenant: Some("acme".into()),
            state: OperationState::Running,
            steps: steps
                .iter()
                .map(|(name, state)| OperationStep {
                    name: (*name).into(),
                    state: *state,
                    tries: 1,
                    started_at: None,
                    finished_at: None,
                })
                .collect(),
            progress: None,
            group_id: None,
            error: None,
            created_at: DateTime::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
        }
    }

    #[test]
    fn each_change_is_told_once() {
        let (sinks, captured) = Sinks::captured();
        let output = Output::new(sinks, false, false);
        let mut progress = Progress::new(&output);
        progress.show(&operation(&[("role", StepState::Running), ("database", StepState::Pending)]));
        progress.show(&operation(&[("role", StepState::Done), ("database", StepState::Running)]));
        progress.show(&operation(&[("role", StepState::Done), ("database", StepState::Running)]));
        progress.waiting("gone");
        progress.waiting("gone");
        progress.show(&operation(&[("role", StepState::Undone), ("database", StepState::Failed)]));
        assert_eq!(captured.stderr(), "[1/2] role done\ngone\n[1/2] role undone\n[2/2] database failed\n");
    }
}
