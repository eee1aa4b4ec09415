//! Images that come with a question: stored and given back, shown to models of every kind, routed, bounded and refused.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::fake_providers::{FakeProviders, KEY};
use crate::harness::{Answer, Platform, Tenant, connect, events, fake_model};

/// An image of a format, told from others by its number, of so many bytes.
fn image(media_type: &str, number: u8, size: usize) -> Vec<u8> {
    let mut content: Vec<u8> = match media_type {
        "image/png" => b"\x89PNG\r\n\x1a\n".to_vec(),
        "image/jpeg" => b"\xFF\xD8\xFF\xE0".to_vec(),
        "image/webp" => b"RIFF\x10\0\0\0WEBPVP8 ".to_vec(),
        _ => b"GIF89a".to_vec(),
    };
    content.resize(size, number);
    content
}

fn url(media_type: &str, content: &[u8]) -> String {
    format!("data:{media_type};base64,{}", BASE64_STANDARD.encode(content))
}

/// A small PNG.
fn png(number: u8) -> String {
    url("image/png", &image("image/png", number, 100))
}

/// Two assistants, of which one looks at images.
fn assistants() -> Value {
    json!([
        { "name": "words", "title": "Words", "keywords": ["word"] },
        { "name": "pictures", "title": "Pictures", "keywords": ["picture"], "accepts_images": true }
    ])
}

/// A tenant with these assistants and models of the fake's, of which the first is the default one.
async fn with_models(platform: &Platform, slug: &str, models: &[&str]) -> Tenant {
    let tenant = platform.tenant(slug).await;
    platform.offer(&tenant, models).await;
    platform.configure(&tenant, json!({ "assistants": assistants() })).await.expect(StatusCode::OK);
    tenant
}

async fn ask(platform: &Platform, tenant: &Tenant, body: Value) -> Answer {
    platform.post("/api/v1/chat", &tenant.user.access, body).await
}

/// What a refusal says: its code, and the field with the reason.
fn refusal(answer: Answer) -> (String, String, String) {
    let body = answer.expect(StatusCode::UNPROCESSABLE_ENTITY);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&body["code"]), text(&body["errors"][0]["field"]), text(&body["errors"][0]["message"]))
}

/// The content of the messages that the model was told last, without the instructions.
async fn told(tenant: &Tenant) -> Vec<Value> {
    let call = fake_model().await.calls_with_key(&tenant.key).pop().unwrap();
    let messages = call.body["messages"].as_array().unwrap().iter().skip(1);
    messages.map(|message| message["content"].clone()).collect()
}

/// The same as a list of what it was shown and told: the URLs of images, and texts.
async fn shown(tenant: &Tenant) -> Vec<String> {
    let one = |part: &Value| {
        let url = part["image_url"]["url"].as_str().or(part["text"].as_str());
        url.or(part.as_str()).unwrap_or_else(|| panic!("{part}")).to_owned()
    };
    let contents = told(tenant).await;
    let parts = contents.iter().flat_map(|content| match content {
        Value::Array(parts) => parts.iter().map(one).collect(),
        text => vec![one(text)],
    });
    parts.collect()
}

async fn messages(platform: &Platform, token: &str, session: &Value) -> Value {
    let path = format!("/api/v1/sessions/{}/messages", session.as_str().unwrap());
    platform.get(&path, token).await.expect(StatusCode::OK)["items"].clone()
}

async fn fetch(platform: &Platform, token: &str, id: &str) -> reqwest::Response {
    let request = platform.client.get(format!("{}/api/v1/images/{id}", platform.url));
    request.bearer_auth(token).send().await.unwrap()
}

async fn count(platform: &Platform, tenant: &Tenant, of: &str) -> i64 {
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    database.query_one(&format!("SELECT count(*) FROM {of}"), &[]).await.unwrap().get(0)
}

/// Waits until the server has heard of a change of the registry.
async fn heard() {
    tokio::time::sleep(Duration::from_millis(500)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_stored_and_given_back_byte_by_byte_to_their_user_alone() {
    let platform = Platform::start().await;
    let tenant = with_models(&platform, "given-back", &["echo", "no-usage"]).await;
    let other = platform.tenant("given-back-other").await;
    let formats = ["image/png", "image/jpeg", "image/webp", "image/gif"];
    let contents: Vec<_> = formats.iter().zip(1..).map(|(format, number)| image(format, number, 70_001)).collect();
    let urls: Vec<_> = formats.iter().zip(&contents).map(|(format, content)| url(format, content)).collect();
    let question = json!({ "message": "What is in them?", "assistant": "pictures", "images": urls, "stream": true });
    let stream = ask(&platform, &tenant, question).await;
    let started: Value = serde_json::from_str(&events(&stream.text)[0].1).unwrap();
    assert!(stream.text.contains("[DONE]"), "{}", stream.text);

    // Images stand before the words, each as it came.
    let parts = urls.iter().map(|url| json!({ "type": "image_url", "image_url": { "url": url } }));
    let parts: Vec<_> = parts.chain([json!({ "type": "text", "text": "What is in them?" })]).collect();
    assert_eq!(told(&tenant).await, [json!(parts)]);

    let listed = messages(&platform, &tenant.user.access, &started["session_id"]).await;
    assert_eq!(listed[0]["content"], "What is in them?");
    assert_eq!(listed[1].get("images"), None);
    let images = listed[0]["images"].as_array().unwrap();
    assert_eq!(images.len(), 4);
    for ((listed, format), content) in images.iter().zip(formats).zip(&contents) {
        assert_eq!((&listed["media_type"], &listed["bytes"]), (&json!(format), &json!(70_001)));
        let id = listed["id"].as_str().unwrap();
        let given = fetch(&platform, &tenant.user.access, id).await;
        assert_eq!(given.status(), StatusCode::OK);
        let header = |name: &str| given.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(
            (header("content-type"), header("x-content-type-options")),
            (format.to_owned(), "nosniff".to_owned())
        );
        assert!(header("content-security-policy").contains("sandbox") && header("cache-control").contains("private"));
        assert_eq!(given.bytes().await.unwrap(), content.as_slice());
        // Another user of the same tenant, its admin included, and anybody of another one: it is not there, as what never was.
        for token in [&tenant.admin.access, &other.user.access, &other.admin.access] {
            for id in [id, &Uuid::now_v7().to_string(), "no-id"] {
                let answer = platform.get(&format!("/api/v1/images/{id}"), token).await;
                assert_eq!(answer.expect_problem(StatusCode::NOT_FOUND), "not_found");
            }
        }
    }
    // A client's database is the client's. What is no image is told no browser as one, whatever stands there.
    let id = images[0]["id"].as_str().unwrap();
    let database = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let changed = format!(
        "ALTER TABLE chat_images DROP CONSTRAINT chat_images_media_type_check;
         UPDATE chat_images SET media_type = 'text/html' WHERE id = '{id}'"
    );
    database.batch_execute(&changed).await.unwrap();
    assert_eq!(fetch(&platform, &tenant.user.access, id).await.status(), StatusCode::NOT_FOUND);
    // What a call cost is estimated with its images, if the provider does not say.
    let question = json!({ "message": "hi", "assistant": "pictures", "model": "no-usage", "images": [png(1), png(2)] });
    let usage = ask(&platform, &tenant, question).await.expect(StatusCode::OK)["usage"].clone();
    assert!(usage["reported"] == false && (2_000..2_100).contains(&usage["input_tokens"].as_u64().unwrap()), "{usage}");
    // They go with their conversation.
    assert_eq!(count(&platform, &tenant, "chat_images").await, 6);
    let path = format!("/api/v1/sessions/{}", started["session_id"].as_str().unwrap());
    platform.send(Method::DELETE, &path, &tenant.user.access, None).await.expect(StatusCode::NO_CONTENT);
    assert_eq!(count(&platform, &tenant, "chat_images").await, 2);
    assert_eq!(fetch(&platform, &tenant.user.access, images[1]["id"].as_str().unwrap()).await.status(), 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_as_large_as_they_may_be_go_all_the_way_and_no_larger_ones() {
    const LARGEST: usize = 3_932_160;
    const TOGETHER: usize = 10 * 1024 * 1024;
    let platform = Platform::start().await;
    let tenant = with_models(&platform, "large", &["instant"]).await;
    let ask_with = async |sizes: &[usize]| {
        let images = sizes.iter().zip(1..).map(|(size, number)| url("image/jpeg", &image("image/jpeg", number, *size)));
        let images: Vec<_> = images.collect();
        ask(&platform, &tenant, json!({ "message": "These", "images": images })).await
    };
    let sizes = [LARGEST, LARGEST, TOGETHER - 2 * LARGEST];
    let answer = ask_with(&sizes).await.expect(StatusCode::OK);
    assert_eq!(answer["assistant"], "pictures", "none was named, and one accepts images");
    let listed = messages(&platform, &tenant.user.access, &answer["session_id"]).await;
    for ((listed, size), number) in listed[0]["images"].as_array().unwrap().iter().zip(sizes).zip(1..) {
        let given = fetch(&platform, &tenant.user.access, listed["id"].as_str().unwrap()).await;
        assert!(given.bytes().await.unwrap() == image("image/jpeg", number, size), "{size}");
    }
    let each = refusal(ask_with(&[100, LARGEST + 1]).await);
    assert_eq!((each.0.as_str(), each.1.as_str()), ("invalid_request", "images[1]"));
    assert!(each.2.contains("3.75 MiB"), "{}", each.2);
    let together = refusal(ask_with(&[LARGEST, LARGEST, TOGETHER - 2 * LARGEST + 1]).await);
    assert!(together.1 == "images" && together.2.contains("10 MiB"), "{together:?}");
    let code = ask_with(&[LARGEST; 3]).await.expect_problem(StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(code, "body_too_large");
    // The larger body is for images only, and for these routes only.
    let text = json!({ "message": "x".repeat(300 * 1024) });
    assert_eq!(ask(&platform, &tenant, text).await.expect_problem(StatusCode::PAYLOAD_TOO_LARGE), "body_too_large");
    let text = json!({ "system_prompt": "x".repeat(300 * 1024) });
    let refused = platform.send(Method::PATCH, "/api/v1/config", &tenant.admin.access, Some(text)).await;
    assert_eq!(refused.expect_problem(StatusCode::PAYLOAD_TOO_LARGE), "body_too_large");
    assert_eq!(count(&platform, &tenant, "chat_sessions").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_announced_and_never_comes_keeps_nobody_from_sending_images() {
    let platform = Platform::start().await;
    let (tenant, other) =
        tokio::join!(with_models(&platform, "announces", &["instant"]), with_models(&platform, "sends", &["instant"]));
    let address = platform.url.strip_prefix("http://").unwrap();
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut client = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /api/v1/chat HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: 14680064\r\n\r\n{{",
            tenant.user.access
        );
        client.write_all(head.as_bytes()).await.unwrap();
        open.push(client);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    for tenant in [&tenant, &other] {
        let images = [url("image/png", &image("image/png", 1, 3_000_000))];
        ask(&platform, tenant, json!({ "message": "This", "images": images })).await.expect(StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_hold_room_until_the_model_speaks_and_one_tenants_do_not_keep_out_the_others() {
    let platform = Platform::start().await;
    let (tenant, other) = tokio::join!(
        with_models(&platform, "waits", &["hang", "instant"]),
        with_models(&platform, "is-served", &["instant"])
    );
    let body = |number: u8, model: &str| {
        let images = vec![url("image/png", &image("image/png", number, 3_900_000)); 2];
        json!({ "message": "These", "images": images, "stream": true, "model": model })
    };
    let send = async |tenant: &Tenant, body: Value| {
        let request = platform.client.post(format!("{}/api/v1/chat", platform.url)).json(&body);
        request.bearer_auth(&tenant.user.access).send().await.unwrap()
    };
    // Three of them have stored their images, and wait for a model that says nothing.
    let mut waiting = Vec::new();
    for number in 1..=3 {
        let answer = send(&tenant, body(number, "hang")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        waiting.push(answer);
    }
    let refused = send(&tenant, body(4, "instant")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "busy");
    // Words need no room, and the others have their own.
    ask(&platform, &tenant, json!({ "message": "word", "model": "instant" })).await.expect(StatusCode::OK);
    assert_eq!(send(&other, body(4, "instant")).await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_stores_nothing_and_uses_nothing() {
    let platform = Platform::start().await;
    let tenant = with_models(&platform, "refused", &["echo", "says-words"]).await;
    platform.set_limits("refused", json!({ "requests_per_month": 100, "requests_per_minute": "unlimited" })).await;
    heard().await;
    // Wrong images, each named by its place; the alias has the same.
    for (wrong, why) in [
        (json!(["https://example.com/a.png"]), "fetched"),
        (json!([png(1), "http://127.0.0.1:1/a.png"]), "fetched"),
        (json!([url("image/svg+xml", b"<svg onload='alert(1)'>")]), "image/webp"),
        (json!([url("image/png", b"<script>alert(1)</script>")]), "type"),
        (json!([url("image/gif", &image("image/png", 1, 100))]), "type"),
        (json!(["data:image/png;base64,%%%"]), "Base64"),
        (json!([""]), "`data:`"),
        (json!(vec![png(1); 5]), "at most 4"),
        (json!(vec![""; 300_000]), "at most 4"),
    ] {
        let count = wrong.as_array().unwrap().len();
        for (path, text) in [("/api/v1/chat", "message"), ("/api/ai/query", "question")] {
            let body = json!({ text: "What is it?", "images": wrong });
            let (code, field, message) = refusal(platform.post(path, &tenant.user.access, body).await);
            let place = if count > 4 { "images".to_owned() } else { format!("images[{}]", count - 1) };
            assert_eq!((code.as_str(), field), ("invalid_request", place), "{message}");
            assert!(message.contains(why), "{message}");
        }
    }
    for odd in [json!("data:image/png;base64,AAAA"), json!([1]), json!({ "0": png(1) }), json!([[png(1)]])] {
        let refused = ask(&platform, &tenant, json!({ "message": "hi", "images": odd })).await;
        assert_eq!(refused.expect_problem(StatusCode::UNPROCESSABLE_ENTITY), "invalid_request");
    }
    assert!(refusal(ask(&platform, &tenant, json!({ "message": " ", "images": [png(1)] })).await).1 == "message");
    // Whoever is asked has to accept them, and a refusal says who does.
    let named =
        refusal(ask(&platform, &tenant, json!({ "message": "hi", "assistant": "words", "images": [png(1)] })).await);
    assert_eq!((named.0.as_str(), named.1.as_str()), ("images_not_accepted", "images"));
    assert!(named.2.contains("`words`") && named.2.contains("`pictures`"), "{}", named.2);
    let blind = json!({ "assistants": [assistants()[0]] });
    platform.configure(&tenant, blind).await.expect(StatusCode::OK);
    let nobody = refusal(ask(&platform, &tenant, json!({ "message": "hi", "images": [png(1)] })).await);
    assert_eq!(nobody.0, "images_not_accepted");
    platform.configure(&tenant, json!({ "assistants": [] })).await.expect(StatusCode::OK);
    assert_eq!(refusal(ask(&platform, &tenant, json!({ "message": "hi", "images": [png(1)] })).await).0, nobody.0);
    platform.configure(&tenant, json!({ "assistants": assistants() })).await.expect(StatusCode::OK);
    // And the plan has to have it, however good the images are.
    let listed = async || {
        let listed = platform.get("/api/v1/assistants", &tenant.user.access).await.expect(StatusCode::OK);
        listed["items"].as_array().unwrap().iter().map(|one| one["accepts_images"] == true).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, [false, true]);
    platform.set_limits("refused", json!({ "features": { "vision": false } })).await;
    heard().await;
    assert_eq!(listed().await, [false, false]);
    for images in [json!([png(1)]), json!(["nonsense"])] {
        let refused = ask(&platform, &tenant, json!({ "message": "hi", "images": images })).await;
        let refused = refused.expect(StatusCode::FORBIDDEN);
        assert_eq!(refused["code"], "feature_not_in_plan");
        assert!(refused["detail"].as_str().unwrap().contains("`vision`"), "{refused}");
    }
    for table in ["chat_sessions", "chat_messages", "chat_images", "model_calls"] {
        assert_eq!(count(&platform, &tenant, table).await, 0, "{table}");
    }
    let quota = platform.get("/api/v1/quota", &tenant.user.access).await.expect(StatusCode::OK);
    assert_eq!(quota["requests_this_month"]["used"], 0);
    // Words are asked as before.
    ask(&platform, &tenant, json!({ "message": "hi", "images": [] })).await.expect(StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follow_ups_show_the_last_images_to_those_that_accept_them() {
    let platform = Platform::start().await;
    let tenant = with_models(&platform, "follow-ups", &["says-ok"]).await;
    platform.configure(&tenant, json!({ "routing": { "by": "rule" } })).await.expect(StatusCode::OK);
    let (first, second) = (png(1), png(2));
    let begun = ask(&platform, &tenant, json!({ "message": "one word", "images": [first, second] })).await;
    let begun = begun.expect(StatusCode::OK);
    assert_eq!(begun["assistant"], "pictures", "a rule of one that accepts none does not count");
    let go_on = async |message: &str, images: Value| {
        let body = json!({ "message": message, "session_id": begun["session_id"], "images": images });
        let assistant = ask(&platform, &tenant, body).await.expect(StatusCode::OK)["assistant"].clone();
        (assistant, shown(&tenant).await)
    };
    let both = [first.as_str(), second.as_str(), "one word", "ok"];
    let (assistant, told) = go_on("And?", json!([])).await;
    assert_eq!(
        (assistant, told),
        (json!("pictures"), [&both[..], &["And?"]].concat().iter().map(|&text| text.to_owned()).collect())
    );
    // Only texts to one that looks at nothing.
    let (assistant, told) = go_on("a word", json!([])).await;
    assert_eq!((assistant, told[0].as_str(), told.len()), (json!("words"), "one word", 5));
    // Back at a picture: the last one has images, and its own are shown alone.
    let third = png(3);
    let (assistant, told) = go_on("this picture", json!([third])).await;
    assert_eq!(assistant, "pictures");
    assert_eq!(
        (told[0].as_str(), &told[told.len() - 2..]),
        ("one word", &[third.clone(), "this picture".to_owned()][..])
    );
    // The last of the earlier ones from then on.
    let (_, told) = go_on("Sure?", json!([])).await;
    let urls: Vec<_> = told.iter().filter(|text| text.starts_with("data:")).collect();
    assert_eq!(urls, [&third]);
    // What is behind the window is not shown.
    platform.configure(&tenant, json!({ "history_length": 2 })).await.expect(StatusCode::OK);
    let (assistant, told) = go_on("Really?", json!([])).await;
    assert_eq!((assistant, told), (json!("pictures"), ["Sure?", "ok", "Really?"].map(str::to_owned).to_vec()));
    platform.configure(&tenant, json!({ "history_length": 20 })).await.expect(StatusCode::OK);
    platform.set_limits("follow-ups", json!({ "features": { "vision": false } })).await;
    heard().await;
    let (_, told) = go_on("Still?", json!([])).await;
    assert!(told.iter().all(|text| !text.starts_with("data:")), "the plan has it no more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_images_make_another_question_and_another_answer() {
    let platform = Platform::start().await;
    let tenant = with_models(&platform, "other-images", &["slow-1500", "instant"]).await;
    // At once: the same words about two images are two questions, about the same image they are one.
    let clicks = [1, 1, 2, 2]
        .map(|number| ask(&platform, &tenant, json!({ "message": "What is it?", "images": [png(number)] })));
    let answers = join_all(clicks).await.into_iter().map(|answer| answer.expect(StatusCode::OK)["message_id"].clone());
    let ids: Vec<_> = answers.collect();
    assert!(ids[0] == ids[1] && ids[2] == ids[3] && ids[0] != ids[2], "{ids:?}");
    assert_eq!(count(&platform, &tenant, "chat_images").await, 2);
    // One after another, where answers are kept.
    platform
        .configure(&tenant, json!({ "answer_cache": { "enabled": true, "scope": "user", "minutes": 5 } }))
        .await
        .expect(StatusCode::OK);
    let is_kept = async |images: &[String], session: Option<&Value>| {
        let body = json!({ "message": "And now?", "model": "instant", "images": images, "session_id": session });
        let answer = ask(&platform, &tenant, body).await.expect(StatusCode::OK);
        (answer["from_cache"] == true, answer["session_id"].clone())
    };
    assert!(!is_kept(&[png(1)], None).await.0);
    let (kept, session) = is_kept(&[png(1)], None).await;
    assert!(kept && !is_kept(&[png(2)], None).await.0 && !is_kept(&[png(1), png(2)], None).await.0);
    assert!(is_kept(&[png(1), png(2)], None).await.0 && !is_kept(&[png(2), png(1)], None).await.0);
    // A kept answer's question has its images like any other, and what follows depends on them.
    let listed = messages(&platform, &tenant.user.access, &session).await;
    let id = listed[0]["images"][0]["id"].as_str().unwrap();
    let given = fetch(&platform, &tenant.user.access, id).await.bytes().await.unwrap();
    assert_eq!(given, image("image/png", 1, 100));
    let (_, other) = is_kept(&[png(2)], None).await;
    assert!(!is_kept(&[], Some(&session)).await.0 && !is_kept(&[], Some(&other)).await.0);
    assert_eq!(shown(&tenant).await[0], png(2));
    let kept_again = is_kept(&[png(3)], Some(&session)).await;
    assert!(!kept_again.0, "in a conversation");
    let listed = messages(&platform, &tenant.user.access, &session).await;
    assert_eq!(listed[4]["images"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_provider_is_shown_them_in_its_own_form() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("image-kinds").await;
    let fake = FakeProviders::start().await;
    platform.configure(&tenant, json!({ "assistants": assistants() })).await.expect(StatusCode::OK);
    let content = image("image/webp", 7, 200);
    let base64 = BASE64_STANDARD.encode(&content);
    let account = fake.service_account(3600);
    for (kind, key, place, path) in [
        ("anthropic", KEY, "", "/v1/messages"),
        ("gemini", KEY, "", "/v1beta/models/"),
        ("vertex", account.as_str(), "/v1/projects/acme/locations/europe-west4", "/vertex/"),
        ("azure_openai", KEY, "", "/openai/"),
    ] {
        let model = format!("{kind}-text");
        let body = json!({
            "provider": kind, "base_url": fake.url(place), "api_key": key, "models": [model], "default_model": model
        });
        platform
            .send(Method::PUT, &format!("/api/v1/ai-keys/{kind}"), &tenant.admin.access, Some(body))
            .await
            .expect_success();
        let question = json!({ "message": "Look", "model": model, "images": [url("image/webp", &content)] });
        let answer = ask(&platform, &tenant, question).await.expect(StatusCode::OK);
        let more = json!({ "message": "More", "model": model, "session_id": answer["session_id"] });
        for body in [None, Some(more)] {
            if let Some(body) = body {
                // A follow-up has no images of its own, and is the picture assistant's because that gave the last answer.
                ask(&platform, &tenant, body).await.expect(StatusCode::OK);
            }
            let call = fake.calls(path).pop().unwrap().body;
            let (shown, expected) = match kind {
                "anthropic" => (
                    &call["messages"][0]["content"],
                    json!([
                        { "type": "image", "source": { "type": "base64", "media_type": "image/webp", "data": base64 } },
                        { "type": "text", "text": "Look" }
                    ]),
                ),
                "gemini" | "vertex" => (
                    &call["contents"][0]["parts"],
                    json!([{ "inlineData": { "mimeType": "image/webp", "data": base64 } }, { "text": "Look" }]),
                ),
                _ => (
                    &call["messages"][1]["content"],
                    json!([
                        { "type": "image_url", "image_url": { "url": url("image/webp", &content) } },
                        { "type": "text", "text": "Look" }
                    ]),
                ),
            };
            assert_eq!(shown, &expected, "{kind}");
        }
    }
}
