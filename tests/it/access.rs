//! Signing in, guessing, tokens and their end, invites, and who may change whom.

use std::sync::Arc;

use chrono::TimeDelta;
use freehold::access::{AccessError, Created, tenant_store};
use freehold::clock::{ManualClock, SharedClock};
use futures::future::join_all;
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{self, ADMIN_EMAIL, Answer, Options, PASSWORD, Platform, Tokens, connect};

const WRONG: &str = "not the password at all";

/// A platform whose clock is moved by hand.
async fn platform() -> (Platform, Arc<ManualClock>) {
    let clock = harness::manual_clock();
    let shared: SharedClock = clock.clone();
    (Platform::start_with(Options { clock: Some(shared), ..Options::default() }).await, clock)
}

/// A company with its first admin signed in.
struct Company {
    slug: String,
    admin: Tokens,
    admin_email: String,
}

async fn company(platform: &Platform, slug: &str) -> Company {
    let answer = platform.request_tenant(slug).await.expect(StatusCode::ACCEPTED);
    let operation = platform.settled(&answer["operation"]).await;
    assert_eq!(operation["state"], "succeeded", "{operation}");
    let token = answer["admin_invite"]["token"].as_str().unwrap();
    let admin = Tokens::from(&accept(platform, slug, token, PASSWORD).await.expect(StatusCode::OK));
    let admin_email = answer["admin_invite"]["email"].as_str().unwrap().to_owned();
    Company { slug: slug.to_owned(), admin, admin_email }
}

async fn accept(platform: &Platform, slug: &str, token: &str, password: &str) -> Answer {
    let body = json!({ "tenant": slug, "token": token, "password": password });
    platform.post("/api/v1/auth/accept-invite", "", body).await
}

async fn invite(platform: &Platform, slug: &str, email: &str) -> String {
    let path = format!("/platform/v1/tenants/{slug}/invites");
    let answer = platform.post(&path, &platform.token, json!({ "email": email })).await.expect(StatusCode::CREATED);
    answer["token"].as_str().unwrap().to_owned()
}

async fn login(platform: &Platform, slug: &str, email: &str, password: &str) -> Answer {
    let body = json!({ "tenant": slug, "email": email, "password": password });
    platform.post("/api/v1/auth/login", "", body).await
}

async fn refresh(platform: &Platform, token: &str) -> Answer {
    platform.post("/api/v1/auth/refresh", "", json!({ "refresh_token": token })).await
}

/// A user of a role, made by `token`'s owner and signed in. Returns its id too.
async fn user(platform: &Platform, company: &Company, role: &str, name: &str) -> (String, Tokens) {
    let email = format!("{name}@users.example");
    let body = json!({ "email": email, "role": role, "password": PASSWORD });
    let created = platform.post("/api/v1/users", &company.admin.access, body).await.expect(StatusCode::CREATED);
    let tokens = login(platform, &company.slug, &email, PASSWORD).await.expect(StatusCode::OK);
    (created["id"].as_str().unwrap().to_owned(), Tokens::from(&tokens))
}

async fn change(platform: &Platform, token: &str, id: &str, body: Value) -> Answer {
    platform.send(Method::PATCH, &format!("/api/v1/users/{id}"), token, Some(body)).await
}

async fn me(platform: &Platform, token: &str) -> StatusCode {
    platform.get("/api/v1/me", token).await.status
}

async fn own_id(platform: &Platform, token: &str) -> String {
    platform.get("/api/v1/me", token).await.expect(StatusCode::OK)["id"].as_str().unwrap().to_owned()
}

/// A problem without what names the request.
fn anonymous(mut answer: Answer) -> (StatusCode, Value) {
    answer.body["request_id"] = Value::Null;
    (answer.status, answer.body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_super_admins_sessions_are_listed_revoked_and_expire() {
    let (platform, clock) = platform().await;
    let path = "/platform/v1/sessions";
    let sign_in = async |email: &str, password: &str| {
        platform.post(path, "", json!({ "email": email, "password": password })).await
    };
    let second = sign_in(&ADMIN_EMAIL.to_uppercase(), PASSWORD).await.expect(StatusCode::CREATED);
    let token = second["token"].as_str().unwrap();
    let listed = platform.get(path, token).await.expect(StatusCode::OK);
    let items = listed["items"].as_array().unwrap();
    assert_eq!(items.iter().map(|item| item["current"] == true).collect::<Vec<_>>(), [true, false]);
    assert_eq!(items[0]["id"], second["session_id"]);

    // Another admin's session is none of the caller's.
    let stranger = secrecy::SecretString::from(PASSWORD);
    platform.state.super_admins.create("second@freehold.example", &stranger).await.unwrap();
    let other = sign_in("second@freehold.example", PASSWORD).await.expect(StatusCode::CREATED);
    let revoke =
        async |id: &str, token: &str| platform.send(Method::DELETE, &format!("{path}/{id}"), token, None).await.status;
    let own = second["session_id"].as_str().unwrap();
    assert_eq!(revoke(own, other["token"].as_str().unwrap()).await, StatusCode::NOT_FOUND);
    assert_eq!(revoke("nonsense", token).await, StatusCode::NOT_FOUND);
    assert_eq!(revoke("current", token).await, StatusCode::NO_CONTENT);
    assert_eq!(platform.get(path, token).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(revoke(own, &platform.token).await, StatusCode::NOT_FOUND, "it has ended already");

    clock.advance(TimeDelta::hours(12));
    assert_eq!(platform.get(path, &platform.token).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_is_slowed_the_same_for_accounts_that_exist_and_those_that_do_not() {
    let (platform, clock) = platform().await;
    let company = company(&platform, "guessed").await;
    let tenant = |slug: &str, email: &str| {
        let body = json!({ "tenant": slug, "email": email, "password": WRONG });
        ("/api/v1/auth/login", body)
    };
    let targets = [
        ("/platform/v1/sessions", json!({ "email": ADMIN_EMAIL, "password": WRONG })),
        ("/platform/v1/sessions", json!({ "email": "nobody@freehold.example", "password": WRONG })),
        tenant(&company.slug, "nobody@guessed.example"),
        tenant("no-such-tenant", "nobody@guessed.example"),
        tenant("Not A Slug", "nobody@guessed.example"),
        tenant(&company.slug, &company.admin_email),
    ];
    // Each step: seconds to let pass, then the answer.
    let (refused, locked) = (StatusCode::UNAUTHORIZED, StatusCode::TOO_MANY_REQUESTS);
    let steps = [
        (0, refused),
        (0, refused),
        (0, refused),
        (0, refused),
        (0, refused),
        (0, locked),
        (1, refused),
        (1, locked),
        // What was refused did not make the wait longer.
        (1, refused),
        (3, locked),
        (1, refused),
    ];
    let mut histories = Vec::new();
    for (path, body) in &targets {
        let mut history = Vec::new();
        for (seconds, expected) in steps {
            clock.advance(TimeDelta::seconds(seconds));
            let answer = platform.post(path, "", body.clone()).await;
            assert_eq!(answer.status, expected, "{body} {}", answer.text);
            let wait = answer.headers.get("retry-after").map(|value| value.to_str().unwrap().to_owned());
            history.push((anonymous(answer), wait));
        }
        assert_eq!(history[5].1.as_deref(), Some("1"));
        assert_eq!(history[9].1.as_deref(), Some("1"));
        histories.push(history);
    }
    assert!(histories.iter().all(|history| *history == histories[0]), "the answers differ");

    // The right password does not get past the lock either; after it, it does, and the count starts again.
    let answer = login(&platform, &company.slug, &company.admin_email, PASSWORD).await;
    assert_eq!(answer.status, locked);
    clock.advance(TimeDelta::seconds(8));
    login(&platform, &company.slug, &company.admin_email, PASSWORD).await.expect(StatusCode::OK);
    for _ in 0..5 {
        let answer = login(&platform, &company.slug, &company.admin_email, WRONG).await;
        assert_eq!(answer.status, refused);
    }
}

/// The actions of the audit record that are about super admins, oldest first.
async fn noted(platform: &Platform) -> Vec<String> {
    let sql = "SELECT action FROM audit_events WHERE action LIKE 'super\\_admin.%' ORDER BY at, id";
    platform.platform_client().await.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_super_admins_new_password_ends_their_sessions_and_what_was_guessed() {
    let (platform, _clock) = platform().await;
    let admins = &platform.state.super_admins;
    let (former, new) = (SecretString::from(PASSWORD), SecretString::from("quite another passphrase"));
    assert_eq!(admins.create(ADMIN_EMAIL, &former).await.unwrap(), Created::Exists);
    assert_eq!(admins.create(ADMIN_EMAIL, &new).await.unwrap(), Created::ExistsWithAnotherPassword);
    let sign_in = async |password: &str| {
        platform.post("/platform/v1/sessions", "", json!({ "email": ADMIN_EMAIL, "password": password })).await.status
    };
    for _ in 0..6 {
        sign_in(WRONG).await;
    }
    assert_eq!(sign_in(PASSWORD).await, StatusCode::TOO_MANY_REQUESTS);
    assert!(matches!(admins.set_password("nobody@x.example", &new).await, Err(AccessError::NotFound(_))));
    let short = SecretString::from("short");
    assert!(matches!(admins.set_password(ADMIN_EMAIL, &short).await, Err(AccessError::WeakPassword(_))));
    platform.get("/platform/v1/sessions", &platform.token).await.expect(StatusCode::OK);

    assert_eq!(admins.set_password(&ADMIN_EMAIL.to_uppercase(), &new).await.unwrap(), 1);
    platform.get("/platform/v1/sessions", &platform.token).await.expect(StatusCode::UNAUTHORIZED);
    assert_eq!(sign_in(PASSWORD).await, StatusCode::UNAUTHORIZED);
    assert_eq!(sign_in("quite another passphrase").await, StatusCode::CREATED);
    assert_eq!(noted(&platform).await, ["super_admin.create", "super_admin.set_password"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_super_admin_is_removed_with_their_sessions_and_the_last_one_stays() {
    let (platform, _clock) = platform().await;
    let admins = &platform.state.super_admins;
    let last = admins.remove(ADMIN_EMAIL, false).await;
    assert!(matches!(last, Err(AccessError::LastSuperAdmin)), "{last:?}");
    admins.create("second@x.example", &SecretString::from(PASSWORD)).await.unwrap();
    assert!(matches!(admins.remove("nobody@x.example", true).await, Err(AccessError::NotFound(_))));
    // Of two who remove each other at once, one goes.
    let (one, other) = tokio::join!(admins.remove(ADMIN_EMAIL, false), admins.remove("second@x.example", false));
    assert_eq!([one.is_ok(), other.is_ok()].iter().filter(|gone| **gone).count(), 1);
    let left = if one.is_ok() { "second@x.example" } else { ADMIN_EMAIL };
    let expected = if one.is_ok() { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
    platform.get("/platform/v1/sessions", &platform.token).await.expect(expected);
    admins.remove(left, true).await.unwrap();
    platform.get("/platform/v1/sessions", &platform.token).await.expect(StatusCode::UNAUTHORIZED);
    let actions = ["super_admin.create", "super_admin.create", "super_admin.remove", "super_admin.remove"];
    assert_eq!(noted(&platform).await, actions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_made_at_once_do_not_slip_through_together() {
    let (platform, _clock) = platform().await;
    let company = company(&platform, "parallel").await;
    for email in [company.admin_email.as_str(), "nobody@parallel.example"] {
        let guesses = (0..20).map(|_| login(&platform, &company.slug, email, WRONG));
        let statuses: Vec<_> = join_all(guesses).await.into_iter().map(|answer| answer.status).collect();
        let checked = statuses.iter().filter(|status| **status == StatusCode::UNAUTHORIZED).count();
        let locked = statuses.iter().filter(|status| **status == StatusCode::TOO_MANY_REQUESTS).count();
        assert_eq!((checked, locked), (5, 15), "{email}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_token_works_once_and_its_return_ends_the_family() {
    let (platform, clock) = platform().await;
    let company = company(&platform, "rotating").await;
    let first = company.admin.clone();
    let second = Tokens::from(&refresh(&platform, &first.refresh).await.expect(StatusCode::OK));
    assert_ne!(first.refresh, second.refresh);
    let other = login(&platform, &company.slug, &company.admin_email, PASSWORD).await.expect(StatusCode::OK);
    let other = Tokens::from(&other);

    // The used one comes back: neither it nor its successor is worth anything now.
    assert_eq!(refresh(&platform, &first.refresh).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refresh(&platform, &second.refresh).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(me(&platform, &second.access).await, StatusCode::UNAUTHORIZED);
    // Another sign-in of the same user is none of this.
    assert_eq!(me(&platform, &other.access).await, StatusCode::OK);

    // Of many uses at once one wins, and the family ends.
    let uses = join_all((0..8).map(|_| refresh(&platform, &other.refresh))).await;
    let won: Vec<_> = uses.into_iter().filter(|answer| answer.status == StatusCode::OK).collect();
    assert_eq!(won.len(), 1);
    let winner = Tokens::from(&won[0].body);
    assert_eq!(refresh(&platform, &winner.refresh).await.status, StatusCode::UNAUTHORIZED);

    // Signing out ends a family, and saying so twice is no error.
    let third = login(&platform, &company.slug, &company.admin_email, PASSWORD).await.expect(StatusCode::OK);
    let third = Tokens::from(&third);
    for token in [third.refresh.as_str(), third.refresh.as_str(), "no token"] {
        let body = json!({ "refresh_token": token });
        assert_eq!(platform.post("/api/v1/auth/logout", "", body).await.status, StatusCode::NO_CONTENT);
    }
    assert_eq!(me(&platform, &third.access).await, StatusCode::UNAUTHORIZED);
    assert_eq!(refresh(&platform, &third.refresh).await.status, StatusCode::UNAUTHORIZED);

    // Both kinds of token expire.
    let last = login(&platform, &company.slug, &company.admin_email, PASSWORD).await.expect(StatusCode::OK);
    assert_eq!(last["expires_in"], 900);
    let last = Tokens::from(&last);
    clock.advance(TimeDelta::minutes(15));
    assert_eq!(me(&platform, &last.access).await, StatusCode::UNAUTHORIZED);
    clock.advance(TimeDelta::days(30));
    assert_eq!(refresh(&platform, &last.refresh).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invite_works_once_and_lets_a_known_user_in_again() {
    let (platform, clock) = platform().await;
    let company = company(&platform, "inviting").await;
    let slug = company.slug.as_str();
    let invalid = |answer: Answer| answer.expect_problem(StatusCode::UNAUTHORIZED) == "invalid_invite";

    let replaced = invite(&platform, slug, "new@inviting.example").await;
    let token = invite(&platform, slug, "New@Inviting.example").await;
    assert!(invalid(accept(&platform, slug, &replaced, PASSWORD).await), "a newer invite replaces it");
    assert!(invalid(accept(&platform, "no-such-tenant", &token, PASSWORD).await));
    let weak = accept(&platform, slug, &token, "new@inviting.example").await;
    assert_eq!(weak.expect_problem(StatusCode::UNPROCESSABLE_ENTITY), "invalid_request");
    let uses = join_all((0..4).map(|_| accept(&platform, slug, &token, PASSWORD))).await;
    assert_eq!(uses.iter().filter(|answer| answer.status == StatusCode::OK).count(), 1);
    assert!(uses.into_iter().filter(|answer| answer.status != StatusCode::OK).all(invalid));

    // A user who is disabled and has forgotten everything.
    let (id, old) = user(&platform, &company, "user", "forgetful").await;
    change(&platform, &company.admin.access, &id, json!({ "disabled": true })).await.expect(StatusCode::OK);
    let token = invite(&platform, slug, "forgetful@users.example").await;
    let new = accept(&platform, slug, &token, "another good password").await.expect(StatusCode::OK);
    let profile = platform.get("/api/v1/me", &Tokens::from(&new).access).await.expect(StatusCode::OK);
    assert_eq!((profile["id"].as_str(), profile["role"].as_str()), (Some(id.as_str()), Some("admin")));
    assert_eq!(me(&platform, &old.access).await, StatusCode::UNAUTHORIZED);
    let answer = login(&platform, slug, "forgetful@users.example", PASSWORD).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);

    // Shutting somebody out shuts their open invites too; and time does.
    let token = invite(&platform, slug, "forgetful@users.example").await;
    change(&platform, &company.admin.access, &id, json!({ "role": "user" })).await.expect(StatusCode::OK);
    assert!(invalid(accept(&platform, slug, &token, PASSWORD).await));
    let token = invite(&platform, slug, "late@inviting.example").await;
    clock.advance(TimeDelta::days(7));
    assert!(invalid(accept(&platform, slug, &token, PASSWORD).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_bound_who_may_change_whom() {
    let (platform, _clock) = platform().await;
    let company = company(&platform, "governed").await;
    let admin = company.admin.access.as_str();
    let (manager_id, manager) = user(&platform, &company, "manager", "manager").await;
    let (other_manager, _) = user(&platform, &company, "manager", "other-manager").await;
    let (user_id, plain) = user(&platform, &company, "user", "plain").await;
    let admin_id = own_id(&platform, admin).await;

    // A user may not even look.
    let listing = platform.get("/api/v1/users", &plain.access).await;
    assert_eq!(listing.expect_problem(StatusCode::FORBIDDEN), "forbidden");

    // A manager sees all and changes those of role `user` only.
    platform.get("/api/v1/users", &manager.access).await.expect(StatusCode::OK);
    let create = async |token: &str, role: &str, email: &str| {
        platform.post("/api/v1/users", token, json!({ "email": email, "role": role, "password": PASSWORD })).await
    };
    create(&manager.access, "user", "made-by-manager@users.example").await.expect(StatusCode::CREATED);
    for role in ["manager", "admin"] {
        let answer = create(&manager.access, role, "promoted@users.example").await;
        assert_eq!(answer.expect_problem(StatusCode::FORBIDDEN), "role_not_governed");
        let answer = change(&platform, &manager.access, &user_id, json!({ "role": role })).await;
        assert_eq!(answer.expect_problem(StatusCode::FORBIDDEN), "role_not_governed");
        let answer = change(&platform, &manager.access, &manager_id, json!({ "role": role })).await;
        assert_eq!(answer.expect_problem(StatusCode::FORBIDDEN), "role_not_governed");
    }
    for id in [&admin_id, &other_manager] {
        for body in [json!({ "disabled": true }), json!({ "password": WRONG }), json!({ "name": "x" })] {
            let answer = change(&platform, &manager.access, id, body).await;
            assert_eq!(answer.expect_problem(StatusCode::FORBIDDEN), "role_not_governed");
        }
        let answer = platform.send(Method::DELETE, &format!("/api/v1/users/{id}"), &manager.access, None).await;
        assert_eq!(answer.expect_problem(StatusCode::FORBIDDEN), "role_not_governed");
    }
    let renamed = change(&platform, &manager.access, &user_id, json!({ "name": "Plain" })).await;
    assert_eq!(renamed.expect(StatusCode::OK)["name"], "Plain");
    assert_eq!(me(&platform, &plain.access).await, StatusCode::OK, "a new name signs nobody out");

    // Being shut out counts at once, for the access token as well.
    change(&platform, &manager.access, &user_id, json!({ "disabled": true })).await.expect(StatusCode::OK);
    assert_eq!(me(&platform, &plain.access).await, StatusCode::UNAUTHORIZED);
    assert_eq!(refresh(&platform, &plain.refresh).await.status, StatusCode::UNAUTHORIZED);
    let answer = login(&platform, &company.slug, "plain@users.example", PASSWORD).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    change(&platform, &manager.access, &user_id, json!({ "disabled": false })).await.expect(StatusCode::OK);
    login(&platform, &company.slug, "plain@users.example", PASSWORD).await.expect(StatusCode::OK);

    // A manager who was demoted a moment ago changes nothing any more, though the token says manager.
    change(&platform, admin, &manager_id, json!({ "role": "user" })).await.expect(StatusCode::OK);
    let answer = create(&manager.access, "user", "too-late@users.example").await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);

    let answer = create(admin, "user", "PLAIN@users.example").await;
    assert_eq!(answer.expect_problem(StatusCode::CONFLICT), "email_taken");
    let missing = change(&platform, admin, &Uuid::now_v7().to_string(), json!({ "name": "x" })).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_always_an_admin() {
    let (platform, _clock) = platform().await;
    let company = company(&platform, "last-admin").await;
    let admin = company.admin.access.as_str();
    let admin_id = own_id(&platform, admin).await;
    let code = |answer: Answer| answer.expect_problem(StatusCode::CONFLICT);
    let delete =
        async |id: &str, token: &str| platform.send(Method::DELETE, &format!("/api/v1/users/{id}"), token, None).await;

    assert_eq!(code(change(&platform, admin, &admin_id, json!({ "role": "manager" })).await), "last_admin");
    assert_eq!(code(change(&platform, admin, &admin_id, json!({ "disabled": true })).await), "own_account");
    assert_eq!(code(delete(&admin_id, admin).await), "own_account");

    // Several admins take each other's role away at once: one is left.
    let mut admins = vec![(admin_id, company.admin.clone())];
    for name in ["a", "b", "c"] {
        admins.push(user(&platform, &company, "admin", name).await);
    }
    let attacks = (0..admins.len()).map(|index| {
        let (_, tokens) = &admins[index];
        let (target, _) = &admins[(index + 1) % admins.len()];
        change(&platform, &tokens.access, target, json!({ "role": "user" }))
    });
    for answer in join_all(attacks).await {
        let known = [StatusCode::OK, StatusCode::UNAUTHORIZED, StatusCode::CONFLICT];
        assert!(known.contains(&answer.status), "{}", answer.text);
    }
    let database = connect(&platform.tenant_database(&company.slug).await).await.unwrap();
    let sql = "SELECT count(*) FROM client_users WHERE role = 'admin' AND disabled_at IS NULL";
    assert!(database.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) >= 1);

    // The others can be deleted, with everything that is theirs.
    for (_, tokens) in &admins {
        if me(&platform, &tokens.access).await != StatusCode::OK {
            continue;
        }
        let own = own_id(&platform, &tokens.access).await;
        for (id, _) in admins.iter().filter(|(id, _)| *id != own) {
            delete(id, &tokens.access).await.expect(StatusCode::NO_CONTENT);
        }
        break;
    }
    let left: i64 = database.query_one("SELECT count(*) FROM client_users", &[]).await.unwrap().get(0);
    assert_eq!(left, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_come_in_pages() {
    let (platform, _clock) = platform().await;
    let company = company(&platform, "paged").await;
    for index in 0..4 {
        let body = json!({ "email": format!("{index}@users.example"), "password": PASSWORD });
        platform.post("/api/v1/users", &company.admin.access, body).await.expect(StatusCode::CREATED);
    }
    let (mut emails, mut path) = (Vec::new(), "/api/v1/users?limit=2".to_owned());
    loop {
        let page = platform.get(&path, &company.admin.access).await.expect(StatusCode::OK);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2);
        emails.extend(items.iter().map(|item| item["email"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/api/v1/users?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    let made = (0..4).map(|index| format!("{index}@users.example"));
    assert_eq!(emails, std::iter::once(company.admin_email.clone()).chain(made).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_tenant_is_told_to_its_own_users_only() {
    let (platform, _clock) = platform().await;
    let company = company(&platform, "suspended").await;
    let sql = "UPDATE chat_instances SET state = 'suspended' WHERE slug = 'suspended'";
    platform.platform_client().await.execute(sql, &[]).await.unwrap();
    // The server hears of it by a notification.
    let mut answer = platform.get("/api/v1/me", &company.admin.access).await;
    for _ in 0..100 {
        if answer.status != StatusCode::OK {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        answer = platform.get("/api/v1/me", &company.admin.access).await;
    }
    assert_eq!(answer.expect_problem(StatusCode::FORBIDDEN), "tenant_suspended");
    let (signed, _) = company.admin.access.rsplit_once('.').unwrap();
    let unsigned = format!("{signed}.AAAA");
    assert_eq!(me(&platform, &unsigned).await, StatusCode::UNAUTHORIZED);
    let answer = login(&platform, &company.slug, &company.admin_email, PASSWORD).await;
    let unknown = login(&platform, "no-such-tenant", &company.admin_email, PASSWORD).await;
    assert_eq!(anonymous(answer), anonymous(unknown));
    // Whether the token is good cannot be said meanwhile: it is kept. A tenant that there is not is answered alike.
    let answer = refresh(&platform, &company.admin.refresh).await;
    let (prefix, secret) = company.admin.refresh.split_at("fhr_".len());
    let elsewhere = format!("{prefix}{}{}", uuid::Uuid::now_v7().simple(), secret.get(32..).unwrap());
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(anonymous(answer), anonymous(refresh(&platform, &elsewhere).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_statement_fits_the_schema() {
    let (platform, _clock) = platform().await;
    let company = company(&platform, "statements").await;
    let database = connect(&platform.tenant_database(&company.slug).await).await.unwrap();
    for statement in tenant_store::STATEMENTS {
        database.prepare(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_cannot_void_an_admins_invite() {
    let platform = Platform::start().await;
    let tenant = platform.tenant("void-invites").await;
    let manager = json!({ "email": "manager@void.example", "role": "manager", "password": PASSWORD });
    platform.post("/api/v1/users", &tenant.admin.access, manager).await.expect(StatusCode::CREATED);
    let manager = platform.login(&tenant.slug, "manager@void.example").await;
    let path = format!("/platform/v1/tenants/{}/invites", tenant.slug);
    let body = json!({ "email": "second@void.example" });
    let invite = platform.post(&path, &platform.token, body).await.expect(StatusCode::CREATED);
    let twin = json!({ "email": "second@void.example", "role": "user", "password": PASSWORD });
    let twin = platform.post("/api/v1/users", &manager.access, twin).await.expect(StatusCode::CREATED);
    let path = format!("/api/v1/users/{}", twin["id"].as_str().unwrap());
    platform.send(Method::DELETE, &path, &manager.access, None).await.expect_success();
    let accept = json!({ "tenant": tenant.slug, "token": invite["token"], "password": PASSWORD });
    platform.post("/api/v1/auth/accept-invite", "", accept).await.expect(StatusCode::OK);
}

/// Guessing is on record from where it is slowed, without the address, and however much there is, not without bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_at_super_admins_is_recorded_within_bounds() {
    let (platform, clock) = platform().await;
    let database = platform.platform_client().await;
    let records = async || -> Vec<Value> {
        let sql =
            "SELECT detail FROM audit_events WHERE actor_kind = 'anonymous' AND action = 'session.refuse' ORDER BY id";
        database.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    let guess = async |email: String| {
        let body = json!({ "email": email, "password": WRONG });
        platform.post("/platform/v1/sessions", "", body).await.status
    };
    for _ in 0..4 {
        assert_eq!(guess(ADMIN_EMAIL.to_owned()).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(records().await, Vec::<Value>::new(), "slips are no guessing");
    assert_eq!(guess(ADMIN_EMAIL.to_owned()).await, StatusCode::UNAUTHORIZED);
    // What is refused unseen is not recorded: it could not be bounded.
    assert_eq!(guess(ADMIN_EMAIL.to_owned()).await, StatusCode::TOO_MANY_REQUESTS);
    let recorded = records().await;
    assert_eq!(recorded.len(), 1);
    assert_eq!(recorded[0]["failures"], 5);
    assert!(!recorded[0].to_string().contains("owner@"), "{recorded:?}");
    // As if a hundred addresses had been tried within the hour.
    let flood =
        "INSERT INTO audit_events (id, at, actor_kind, action) SELECT gen_random_uuid(), now(), 'anonymous', 'x'
                 FROM generate_series(1, 99)";
    database.execute(flood, &[]).await.unwrap();
    clock.advance(TimeDelta::seconds(1));
    assert_eq!(guess(ADMIN_EMAIL.to_owned()).await, StatusCode::UNAUTHORIZED);
    assert_eq!(records().await.len(), 1);
    clock.advance(TimeDelta::hours(2));
    assert_eq!(guess(ADMIN_EMAIL.to_owned()).await, StatusCode::UNAUTHORIZED);
    assert_eq!(records().await.len(), 2);
    // Counts and sessions that mean nothing any more are forgotten.
    clock.advance(TimeDelta::days(32));
    assert_eq!(platform.state.super_admins.prune().await.unwrap(), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_session_watches_no_operation_any_more() {
    let settings = &[("FREEHOLD_WORKER_CONCURRENCY", "0")];
    let platform = Platform::start_with(Options { settings, ..Options::default() }).await;
    let answer = platform.request_tenant("watched").await.expect(StatusCode::ACCEPTED);
    let path = format!("/platform/v1/operations/{}/events", answer["operation"]["id"].as_str().unwrap());
    let watched = platform.client.get(format!("{}{path}", platform.url)).bearer_auth(&platform.token).send();
    let watched = watched.await.unwrap();
    platform.send(Method::DELETE, "/platform/v1/sessions/current", &platform.token, None).await.expect_success();
    // Nothing happens to the operation, so only the end of the session can end the stream.
    let rest = tokio::time::timeout(std::time::Duration::from_secs(10), watched.text()).await;
    assert!(rest.expect("the stream goes on").unwrap().contains("queued"));
}
