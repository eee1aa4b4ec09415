//! The house's rules that a compiler does not know: which module may use which, where SQL is, where axum is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Each module's level; a module may use its own level and those below. Features use each other only as listed.
const LEVELS: &[(u8, &[&str])] = &[
    (3, &["http", "app", "worker", "scheduled", "doctor", "main"]),
    (
        2,
        &[
            "tenants",
            "access",
            "configuration",
            "chat",
            "pages",
            "shared_models",
            "fleet",
            "fleet_audit",
            "backups",
            "rotation",
        ],
    ),
    (
        1,
        &[
            "operations",
            "tenant_db",
            "provisioning",
            "providers",
            "audit",
            "idempotency",
            "metering",
            "limits",
            "answer_cache",
            "schedule",
            "postgres_programs",
            "database_check",
            "content_filter",
        ],
    ),
    (
        0,
        &[
            "config",
            "ids",
            "clock",
            "platform_db",
            "postgres_pool",
            "redis_client",
            "telemetry",
            "secrets",
            "api",
            "addresses",
            "json",
            "backup_archive",
        ],
    ),
];

/// The only uses of one feature by another.
const FEATURE_USES: &[(&str, &str)] = &[
    ("fleet", "tenants"),
    ("fleet_audit", "tenants"),
    ("tenants", "access"),
    ("tenants", "configuration"),
    ("chat", "access"),
    ("chat", "configuration"),
    ("chat", "shared_models"),
    ("pages", "access"),
    ("pages", "configuration"),
    ("shared_models", "configuration"),
    ("rotation", "shared_models"),
    ("backups", "tenants"),
    ("backups", "access"),
    ("rotation", "tenants"),
    ("rotation", "configuration"),
    ("rotation", "backups"),
];

/// Files outside `store.rs` and `tenant_store.rs` with SQL, each for a reason.
const SQL_ELSEWHERE: &[(&str, &str)] = &[
    ("src/provisioning/admin.rs", "the administrator's SQL, with quoted identifiers"),
    ("src/provisioning/contents.rs", "counts and compares tables it knows nothing of, with quoted identifiers"),
    ("src/provisioning/inventory.rs", "reads the cluster's catalogs, whatever the names mean"),
    ("src/provisioning/lockout.rs", "the administrator's SQL, with quoted identifiers"),
    ("src/provisioning/logins.rs", "the administrator's SQL, with quoted identifiers"),
    ("src/provisioning/own.rs", "claims, fills and leaves databases that clients bring"),
    ("src/database_check/facts.rs", "asks the catalogs of a server that is nobody's yet"),
    ("src/database_check/mod.rs", "asks a server for its identifier"),
    ("src/database_check/pooler.rs", "asks two sessions for their process"),
    ("src/provisioning/catalog.rs", "reads the catalog, whatever the tables mean"),
    ("src/provisioning/migrate.rs", "locks and migrates a database, whatever its tables mean"),
    ("src/provisioning/template.rs", "builds the template database"),
    ("src/platform_db.rs", "looks at the migrator's own table"),
    ("src/doctor.rs", "looks at everything and changes nothing"),
    ("src/operations/engine.rs", "takes an advisory lock on its own connection"),
];

fn sources() -> Vec<(PathBuf, String)> {
    fn collect(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    collect(&root.join("src"), &mut found);
    found.into_iter().map(|(path, text)| (path.strip_prefix(root).unwrap().to_owned(), text)).collect()
}

/// The part of a file before its unit tests, without comments.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn module(path: &Path) -> String {
    let first = path.components().nth(1).unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules that a file uses, grouped imports (`use crate::{a, b::c}`) included.
fn used_modules(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    let mut note = |path: &str| {
        let name: String = path.trim_start().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        used.insert(name);
    };
    for start in ["crate::", "freehold::"] {
        for (at, _) in code.match_indices(start) {
            let rest = &code[at + start.len()..];
            let Some(group) = rest.strip_prefix('{') else {
                note(rest);
                continue;
            };
            let (mut depth, mut begun) = (1, 0);
            for (position, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => {
                        note(&group[begun..position]);
                        begun = position + 1;
                    }
                    _ => {}
                }
                if depth == 0 {
                    note(&group[begun..position]);
                    break;
                }
            }
        }
    }
    used
}

#[test]
fn grouped_imports_are_seen() {
    let code = "use crate::{access, chat::{cache, turn},\n    configuration::Settings};\nfn f() { crate::ids::new() }";
    let seen = used_modules(code);
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), ["access", "chat", "configuration", "ids"]);
}

#[test]
fn modules_depend_downward_only() {
    let level: BTreeMap<&str, u8> =
        LEVELS.iter().flat_map(|(level, names)| names.iter().map(|name| (*name, *level))).collect();
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let user = module(&path);
        if user == "lib" {
            continue;
        }
        let from = level.get(user.as_str()).unwrap_or_else(|| panic!("`{user}` is at no level"));
        let used_modules = used_modules(&code(&text));
        for (used, to) in &level {
            let uses = used_modules.contains(*used);
            let listed = FEATURE_USES.contains(&(user.as_str(), used));
            if uses && *used != user && (to > from || (*to == 2 && *from == 2 && !listed)) {
                wrong.push(format!("{} uses {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn sql_is_in_the_stores() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let elsewhere = SQL_ELSEWHERE.iter().any(|(allowed, _)| Path::new(allowed) == path);
        let code = code(&text);
        // A statement may begin on the line after the quote, and with a common table expression.
        let sql = code.split('"').any(|text| {
            let mut words = text.split_whitespace();
            match (words.next(), words.next()) {
                (Some("SELECT" | "DELETE" | "INSERT" | "UPDATE"), Some(_)) => true,
                (Some("WITH"), Some(_)) => text.contains(" AS ("),
                _ => false,
            }
        });
        if sql && !["store.rs", "tenant_store.rs"].contains(&name) && !elsewhere {
            wrong.push(path.display().to_string());
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn axum_stays_at_the_edge_and_requests_never_enter_a_feature() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let user = module(&path);
        let code = code(&text);
        if code.contains("axum") && !["http", "app", "main"].contains(&user.as_str()) {
            wrong.push(format!("{} knows axum", path.display()));
        }
        let feature = LEVELS.iter().any(|(level, names)| (1..=2).contains(level) && names.contains(&user.as_str()));
        let bodies =
            code.lines().any(|line| line.contains("api::") && (line.contains("Request") || line.contains("Response")));
        if feature && bodies {
            wrong.push(format!("{} takes or returns a request's body", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_tenants_pool_is_opened_only_where_a_credential_was_verified() {
    // Sign-in and tokens verify the credential themselves; the platform's invite follows a super admin's session; the
    // periodic task settles what dead servers left, and hands nothing out. Of the page that anybody may open, what it
    // looks like is read, and nothing else leaves the module.
    let allowed = ["src/access", "src/http/platform/tenants.rs", "src/scheduled.rs", "src/pages/looks.rs"];
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| {
            let code = code(text);
            let opens = code.contains("databases.open(") || code.contains("postgres_pool::build(");
            let home = path.starts_with("src/tenant_db") || path.starts_with("src/provisioning");
            opens && !home && !allowed.iter().any(|allowed| path.starts_with(allowed))
        })
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_data_key_leaves_the_memory_only_into_a_sealed_backup() {
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| {
            let code = code(text);
            let exports = code.contains(".export()") || code.contains("DataKey::import(");
            exports && !path.starts_with("src/backups") && !path.starts_with("src/secrets")
        })
        .map(|(path, _)| path)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn files_stay_short_enough_to_read() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > 650)
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

/// All pages, with their paths.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let of = |directory: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|end| end == "md")).collect()
    };
    let all = of(root).into_iter().chain(of(&root.join("docs")));
    all.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// The anchors of a page's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading.to_lowercase().replace(' ', "-");
            kept.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
        })
        .collect()
}

#[test]
fn links_of_the_pages_lead_somewhere() {
    let mut wrong = Vec::new();
    for (path, text) in pages() {
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let there = match std::fs::read_to_string(&file) {
                Ok(text) => anchor.is_empty() || anchors(&text).contains(anchor),
                Err(_) => anchor.is_empty() && file.is_dir(),
            };
            if !there {
                wrong.push(format!("{} leads to {target}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_test_that_an_invariant_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let all = page("docs/invariants.md");
    let rows = |text: &str| -> Vec<String> {
        let section = text.split("| invariant | test |").nth(1).unwrap();
        section.lines().skip(2).take_while(|line| line.starts_with('|')).map(str::to_owned).collect()
    };
    let known = rows(&all);
    assert!(known.len() > 60, "the table is written differently now: {} rows", known.len());
    let strangers: Vec<_> = rows(&page("ARCHITECTURE.md")).into_iter().filter(|row| !known.contains(row)).collect();
    assert!(strangers.is_empty(), "ARCHITECTURE.md has invariants that the whole list does not have: {strangers:#?}");
    let mut code = String::new();
    let mut add = |directory: &Path| {
        let mut left = vec![directory.to_owned()];
        while let Some(directory) = left.pop() {
            for path in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    left.push(path);
                } else if let Ok(text) = std::fs::read_to_string(&path) {
                    code.push_str(&text);
                }
            }
        }
    };
    add(&root.join("src"));
    add(&root.join("tests/it"));
    let named = known.iter().flat_map(|row| row.rsplit_once(" | ").unwrap().1.split('`').skip(1).step_by(2));
    let tests = named.filter(|name| name.matches('_').count() >= 3 && !name.contains(['/', ' ']));
    let gone: Vec<_> = tests.filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(gone.is_empty(), "no test is called {gone:?}");
}
