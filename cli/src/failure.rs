//! What a command fails with: the exit code, what to tell a person, and what to tell a program.
//!
//! A failure is complete when it is made: the output module only lays it out. It never holds a credential.

use freehold::api::Problem;
use freehold::api::database::{DatabaseFinding, FindingSeverity};
use serde_json::{Map, Value, json};

use crate::server::Server;

/// The exit codes, documented in `--help`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The request or the operation failed.
    Failed = 1,
    /// The command was not understood, or nobody is signed in.
    Usage = 2,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failed command. Boxed, because it travels in every `Result`.
#[derive(Debug)]
pub struct Failure(Box<Inner>);

#[derive(Debug)]
struct Inner {
    exit: Exit,
    code: String,
    message: String,
    details: Vec<String>,
    hint: Option<String>,
    problem: Option<Problem>,
    result: Map<String, Value>,
}

impl Failure {
    fn new(exit: Exit, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            exit,
            code: code.into(),
            message: message.into(),
            details: Vec::new(),
            hint: None,
            problem: None,
            result: Map::new(),
        }))
    }

    /// The request or the operation failed.
    pub fn failed(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, code, message)
    }

    /// The command cannot be carried out as it was given.
    pub fn usage(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, code, message)
    }

    /// The server refused, and said why.
    pub fn problem(problem: Problem, server: &Server) -> Self {
        let exit = match problem.status {
            401 => Exit::Usage,
            _ => Exit::Failed,
        };
        let mut failure = Self::new(exit, problem.code.clone(), problem.title.clone());
        if let Some(detail) = &problem.detail {
            failure = failure.detail(detail.clone());
        }
        for field in &problem.errors {
            failure = failure.detail(format!("{}: {}", field.field, field.message));
        }
        for finding in &problem.findings {
            failure = failure.detail(finding_line(finding)).detail(format!("  hint: {}", finding.remedy));
        }
        if problem.status >= 500 {
            failure = failure.detail(format!("The server's log names this request {}.", problem.request_id));
        }
        failure.0.hint = hint_for(&problem, server);
        failure.0.problem = Some(problem);
        failure
    }

    /// Adds a line of explanation.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.0.details.push(detail.into());
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Takes the hint away, where the usual one would mislead.
    #[must_use]
    pub fn without_hint(mut self) -> Self {
        self.0.hint = None;
        self
    }

    /// Ends the command with another exit code than usual.
    #[must_use]
    pub fn exiting(mut self, exit: Exit) -> Self {
        self.0.exit = exit;
        self
    }

    /// Adds what had come about before it failed: in JSON it stands beside `error`.
    #[must_use]
    pub fn with_result(mut self, result: Value) -> Self {
        if let Value::Object(fields) = result {
            self.0.result.extend(fields);
        }
        self
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.0.exit
    }

    /// The stable code.
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// The server's status, if it was the server that refused.
    pub fn status(&self) -> Option<u16> {
        self.0.problem.as_ref().map(|problem| problem.status)
    }

    /// The lines for a person, the last one a `hint:` where one helps.
    pub fn lines(&self) -> Vec<String> {
        let inner = &self.0;
        let mut lines = vec![format!("error: {}", inner.message)];
        lines.extend(inner.details.iter().map(|detail| format!("  {detail}")));
        lines.extend(inner.hint.iter().map(|hint| format!("hint: {hint}")));
        lines
    }

    /// The document for a program: `{"error": {code, message, hint, …}}`.
    pub fn document(&self) -> Value {
        let inner = &self.0;
        let mut message = inner.message.clone();
        for detail in &inner.details {
            message.push('\n');
            message.push_str(detail);
        }
        let mut error = json!({ "code": inner.code, "message": message, "hint": inner.hint });
        if let (Value::Object(fields), Some(problem)) = (&mut error, &inner.problem) {
            fields.insert("problem".into(), json!(problem));
        }
        let mut document = inner.result.clone();
        document.insert("error".into(), error);
        Value::Object(document)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let mut failure = Self::failed("failed", error.to_string());
        for cause in error.chain().skip(1) {
            failure = failure.detail(cause.to_string());
        }
        failure
    }
}

/// What a check of a database found, on a line.
pub fn finding_line(finding: &DatabaseFinding) -> String {
    let severity = match finding.severity {
        FindingSeverity::Problem => "problem",
        FindingSeverity::Warning => "warning",
        FindingSeverity::Note => "note   ",
    };
    format!("{severity}  {}: {}", finding.code, finding.message)
}

/// What a 404 says of things that can be listed, and the command that does.
const LISTED: [(&str, &str); 4] = [
    ("no such tenant", "freehold tenant list"),
    ("no such operation", "freehold operation list"),
    ("no such session", "freehold session list"),
    ("no such cluster", "freehold cluster list"),
];
/// The code of every 404 of the platform's; what it does not find stands in the detail.
const NOT_FOUND: &str = "not_found";
/// The code of a request with refused fields, and the field that names a cluster.
const INVALID: (&str, &str) = ("invalid_request", "database.cluster");

/// The code of a server that is registered under another name, which the detail tells.
const REGISTERED_AS: &str = "cluster_registered_as";

/// What usually helps against a problem.
fn hint_for(problem: &Problem, server: &Server) -> Option<String> {
    match (problem.status, problem.code.as_str(), problem.operation_id) {
        (401, _, _) => Some(format!("freehold login {server}")),
        (409, _, Some(operation)) => Some(format!("freehold operation follow {operation}")),
        (404, NOT_FOUND, _) => {
            let listed = LISTED.iter().find(|(detail, _)| problem.detail.as_deref() == Some(*detail))?;
            Some(listed.1.into())
        }
        (_, code, _) if code == INVALID.0 && problem.errors.iter().any(|refused| refused.field == INVALID.1) => {
            Some("freehold cluster list".into())
        }
        (_, REGISTERED_AS, _) => Some("freehold cluster list".into()),
        (429, _, _) => Some("wait a little, then try again".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use freehold::api::FieldProblem;

    fn problem(status: u16, code: &str) -> Problem {
        Problem {
            kind: "about:blank".into(),
            title: "It did not work".into(),
            status,
            code: code.into(),
            detail: Some("Because of this.".into()),
            errors: vec![],
            findings: vec![],
            operation_id: None,
            request_id: "r-1".into(),
        }
    }

    fn server() -> Server {
        "https://freehold.example".parse().unwrap()
    }

    #[test]
    fn not_signed_in_says_how_to_sign_in() {
        let failure = Failure::problem(problem(401, "unauthorized"), &server());
        assert_eq!(failure.exit(), Exit::Usage);
        assert_eq!(
            failure.lines(),
            ["error: It did not work", "  Because of this.", "hint: freehold login https://freehold.example"]
        );
    }

    #[test]
    fn a_conflict_names_the_operation_to_follow() {
        let id = uuid::Uuid::from_u128(7);
        let conflict = Problem { operation_id: Some(id), ..problem(409, "operation_in_progress") };
        let lines = Failure::problem(conflict, &server()).lines();
        assert_eq!(lines.last().unwrap(), &format!("hint: freehold operation follow {id}"));
    }

    #[test]
    fn refused_fields_and_the_request_are_shown() {
        let mut refused = problem(422, "invalid_request");
        refused.errors.push(FieldProblem { field: "slug".into(), message: "too short".into() });
        assert!(Failure::problem(refused, &server()).lines().contains(&"  slug: too short".to_owned()));
        let broken = Failure::problem(problem(500, "internal"), &server());
        assert!(broken.lines().iter().any(|line| line.contains("r-1")));
    }

    #[test]
    fn a_cluster_that_is_not_there_leads_to_the_list() {
        let mut refused = problem(422, "invalid_request");
        assert_eq!(Failure::problem(refused.clone(), &server()).lines().len(), 2);
        refused.errors.push(FieldProblem { field: "database.cluster".into(), message: "is not registered".into() });
        let lines = Failure::problem(refused, &server()).lines();
        assert_eq!(lines.last().unwrap(), "hint: freehold cluster list");
    }

    #[test]
    fn what_hints_are_matched_by_is_what_the_server_says() {
        let edge = |path: &str| {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/http").join(path);
            std::fs::read_to_string(path).unwrap()
        };
        let errors = [edge("error.rs"), edge("error/platform.rs"), edge("error/tenant.rs")].concat();
        for code in [NOT_FOUND, INVALID.0, INVALID.1, REGISTERED_AS] {
            assert!(errors.contains(&format!("\"{code}\"")), "the server has no `{code}`");
        }
        assert!(errors.contains("no such {what}"), "the server words it differently now");
        let all = [errors, edge("platform/sessions.rs"), edge("platform/operations.rs")].concat();
        for (detail, _) in LISTED {
            let what = detail.strip_prefix("no such ").unwrap();
            assert!(all.contains(&format!("not_found(\"{what}\")")), "the server never says `{detail}`");
        }
    }

    #[test]
    fn the_document_is_one_object_with_error_and_what_came_about() {
        let absent = Problem { detail: Some("no such tenant".into()), ..problem(404, "not_found") };
        let failure = Failure::problem(absent, &server()).with_result(json!({ "tenant": 1 }));
        let document = failure.document();
        assert_eq!(document["error"]["code"], "not_found");
        assert_eq!(document["error"]["hint"], "freehold tenant list");
        assert_eq!(document["error"]["problem"]["status"], 404);
        assert_eq!(document["tenant"], 1);
    }
}
