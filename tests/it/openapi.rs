//! The OpenAPI document and the list of codes say what the server really answers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::Platform;

fn operations(document: &Value) -> Vec<(Method, String, Value)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            all.push((method, path.clone(), operation.clone()));
        }
    }
    all
}

/// The formats that the document names for a status of a route.
fn formats(operation: &Value, status: StatusCode) -> Vec<String> {
    let content = &operation["responses"][status.as_str()]["content"];
    content.as_object().map(|content| content.keys().cloned().collect()).unwrap_or_default()
}

fn format(headers: &reqwest::header::HeaderMap) -> String {
    let format = headers.get("content-type").map(|value| value.to_str().unwrap()).unwrap_or_default();
    format.split(';').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_come_as_the_document_says() {
    let platform = Platform::start().await;
    let document = platform.get("/openapi.json", "").await.expect(StatusCode::OK);
    let mut wrong = Vec::new();
    for (method, path, operation) in operations(&document) {
        for status in ["500", "503"] {
            if operation["responses"][status].is_null() {
                wrong.push(format!("{method} {path} does not document {status}"));
            }
        }
        for (status, response) in operation["responses"].as_object().unwrap() {
            let named = response["content"]["application/json"]["schema"]["$ref"].as_str().unwrap_or_default();
            if named.ends_with("/Problem") {
                wrong.push(format!("{method} {path} says that a problem of status {status} is application/json"));
            }
        }
        if operation["security"].as_array().is_none_or(Vec::is_empty) {
            continue;
        }
        let filled = path.replace("{slug}", "nobody").replace("{name}", "main").replace("{model}", "echo");
        let filled = filled.replace("{id}", &uuid::Uuid::nil().to_string());
        let filled = filled.replace("{message_id}", &uuid::Uuid::nil().to_string());
        let answer = platform.send(method.clone(), &filled, "", None).await;
        let told = (answer.status, formats(&operation, answer.status));
        if told != (StatusCode::UNAUTHORIZED, vec![format(&answer.headers)]) {
            wrong.push(format!(
                "{method} {path} answered {} {}, documented {told:?}",
                answer.status,
                format(&answer.headers)
            ));
        }
        if operation["responses"]["401"]["headers"]["WWW-Authenticate"].is_null() {
            wrong.push(format!("{method} {path} does not document WWW-Authenticate"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_and_answered_is_in_the_document() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("described").await;
    platform.set_limits("described", json!({ "requests_per_minute": 10 })).await;
    // Until the server has heard of it.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let document = platform.get("/openapi.json", "").await.expect(StatusCode::OK);
    let ask = async |kind: &'static str, body: &'static str| {
        let request = platform.client.post(format!("{}/api/v1/chat", platform.url)).bearer_auth(&tenant.user.access);
        request.header("content-type", kind).body(body).send().await.unwrap()
    };
    let operation = &document["paths"]["/api/v1/chat"]["post"];
    for (kind, body, status) in [
        ("application/json", "{", StatusCode::BAD_REQUEST),
        ("text/plain", "{}", StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("application/json", "{}", StatusCode::UNPROCESSABLE_ENTITY),
        ("application/json", r#"{"message": "hello"}"#, StatusCode::OK),
    ] {
        let answer = ask(kind, body).await;
        assert_eq!(answer.status(), status, "{kind} {body}");
        let format = format(answer.headers());
        assert!(formats(operation, status).contains(&format), "{status} {format}: {operation}");
        if status == StatusCode::OK {
            let documented = operation["responses"]["200"]["headers"].as_object().unwrap();
            assert!(documented.contains_key("x-ratelimit-remaining-requests"), "{documented:?}");
            assert!(
                documented.keys().all(|name| answer.headers().contains_key(name.as_str())),
                "{:?}",
                answer.headers()
            );
        }
    }
    for event in ["ChatStarted", "ChatDelta", "ChatDone", "ChatError"] {
        assert!(document["components"]["schemas"][event].is_object(), "{event} is not described");
    }
    for path in ["/api/v1/chat", "/api/ai/query"] {
        let body = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"];
        assert_ne!(body["example"], json!(null), "{path} has no example");
    }
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn every_code_is_listed_with_what_to_do() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed: BTreeSet<String> = {
        let text = std::fs::read_to_string(root.join("docs/errors.md")).unwrap();
        let rows = text.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
        let cells: Vec<String> = rows.map(|line| line.split('|').nth(2).unwrap().to_owned()).collect();
        cells.iter().flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
    };
    // How the table of errors writes a code: as the first text behind one of these.
    let marks = [
        "conflict(",
        "unavailable(",
        "refused(",
        "StatusCode::",
        "too_many,",
        "Self::new(status,",
        "ApiError::new(status,",
    ];
    let elsewhere =
        ["src/providers/error.rs", "src/chat/model_call.rs", "src/chat/turn.rs", "src/backup_archive/mod.rs"];
    let is_code = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let mut made = BTreeSet::new();
    let edge = sources(&root.join("src/http"));
    for path in edge.into_iter().filter(|path| !path.components().any(|part| part.as_os_str() == "openai")) {
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        for mark in marks {
            for rest in text.split(mark).skip(1) {
                let Some((before, behind)) = rest.split_once('"') else { continue };
                let code = behind.split('"').next().unwrap();
                let near =
                    before.trim().trim_end_matches(',').bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
                if near && is_code(code) {
                    made.insert(code.to_owned());
                }
            }
        }
    }
    assert!(made.len() > 70, "the codes are written differently now: {made:?}");
    for path in elsewhere {
        let text = std::fs::read_to_string(root.join(path)).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        for line in text.lines().filter(|line| line.trim_start().starts_with("Self::")) {
            if let Some(code) = line.split("=> \"").nth(1).and_then(|rest| rest.split('"').next()) {
                made.insert(code.to_owned());
            }
        }
    }
    // A user's own stop is no error.
    made.remove("stopped");
    let missing: Vec<_> = made.difference(&listed).collect();
    assert!(missing.is_empty(), "docs/errors.md does not list {missing:?}");
    let gone: Vec<_> = listed.difference(&made).collect();
    assert!(gone.is_empty(), "docs/errors.md lists what nothing answers: {gone:?}");
}
