//! `freehold-server` as an operator meets it at a terminal: what it says when something is wrong, and about super admins.

use std::process::{Output, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::process::Command;

use crate::harness::{PASSWORD, server};

const EMAIL: &str = "owner@freehold.example";

/// A directory without a configuration file, and the settings of the commands that run in it.
struct Terminal {
    home: tempfile::TempDir,
    settings: Vec<(&'static str, String)>,
}

impl Terminal {
    fn new(database_url: &str) -> Self {
        let key = format!("1:{}", STANDARD.encode(rand::random::<[u8; 32]>()));
        let settings = vec![("PLATFORM_DATABASE_URL", database_url.to_owned()), ("FREEHOLD_MASTER_KEYS", key)];
        Self { home: tempfile::tempdir().unwrap(), settings }
    }

    async fn run(&self, arguments: &[&str], settings: &[(&str, &str)]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_freehold-server"));
        command.args(arguments).current_dir(self.home.path()).stdin(Stdio::null()).kill_on_drop(true);
        command.envs(self.settings.iter().map(|(name, value)| (*name, value.as_str())));
        command.envs(settings.iter().copied());
        let Output { status, stdout, stderr } = command.output().await.unwrap();
        (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_configuration_that_is_refused_is_told_to_programs_too() {
    let terminal = Terminal::new("postgres://a:canary@127.0.0.1:1/none");
    let listen = [("FREEHOLD_LISTEN", "0.0.0.0:8080")];
    let (code, stdout, stderr) = terminal.run(&["doctor", "--json"], &listen).await;
    assert_eq!(code, 2, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["healthy"], false);
    assert!(report["findings"][0]["seen"].as_str().unwrap().contains("FREEHOLD_PUBLIC_URL"), "{report}");
    assert!(report["findings"][0]["remedy"].as_str().unwrap().contains("https://"), "{report}");
    let (code, stdout, stderr) = terminal.run(&["migrate"], &[("REDIS_URL", "nonsense")]).await;
    assert!(code == 2 && stdout.is_empty() && stderr.contains("REDIS_URL cannot be used"), "{code} {stderr}");
    let (_, settings, _) = terminal.run(&["help-config"], &[]).await;
    for told in ["from 1 to 720; default: 12", "RUST_LOG"] {
        assert!(settings.contains(told), "{settings}");
    }
}

#[tokio::test]
async fn a_database_that_is_away_is_told_once_and_leads_to_the_doctor() {
    let terminal = Terminal::new("postgres://a:canary@127.0.0.1:1/none");
    for command in ["serve", "migrate"] {
        let misspelt = [("FREEHOLD_LISTEM", "127.0.0.1:1")];
        let (code, _, stderr) = terminal.run(&[command], &misspelt).await;
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains("it does not answer\nhint: freehold-server doctor"), "{command}: {stderr}");
        assert!(!stderr.contains("pool timed out while") && !stderr.contains("canary"), "{command}: {stderr}");
        assert!(
            stderr.contains("FREEHOLD_LISTEM") && stderr.contains("meant=\"FREEHOLD_LISTEN\""),
            "{command}: {stderr}"
        );
    }
    let terminal = Terminal::new(&server().await.url("no_such_database"));
    let (code, _, stderr) = terminal.run(&["migrate"], &[]).await;
    assert_eq!((code, stderr.matches("no_such_database").count()), (1, 1), "{stderr}");
    assert!(!stderr.contains("at line") && stderr.contains("hint: freehold-server doctor"), "{stderr}");
}

#[tokio::test]
async fn super_admins_are_made_changed_and_removed() {
    let postgres = server().await;
    let terminal = Terminal::new(&postgres.url(&postgres.create_platform_database().await));
    let (first, other) = (terminal.file("first", PASSWORD), terminal.file("other", "quite another passphrase"));
    let account = async |command: &str, rest: &[&str]| {
        terminal.run(&[&[command, "--email", EMAIL][..], rest].concat(), &[]).await
    };
    let steps: [(&str, &[&str], i32, &str); 8] = [
        ("create-admin", &["--password-file", &first], 0, "super admin created"),
        ("create-admin", &["--password-file", &first], 0, "nothing changed"),
        ("create-admin", &["--password-file", &other], 0, "freehold-server set-admin-password"),
        ("set-admin-password", &["--password-file", &other], 0, "set super admin's password"),
        ("create-admin", &["--password-file", &other], 0, "nothing changed"),
        ("remove-admin", &[], 1, "hint: create another first, or add --force"),
        ("remove-admin", &["--force"], 0, "remove super admin"),
        ("set-admin-password", &["--password-file", &other], 1, "there is no super admin of this address"),
    ];
    for (command, rest, expected, told) in steps {
        let (code, _, stderr) = account(command, rest).await;
        assert_eq!(code, expected, "{command} {rest:?}: {stderr}");
        assert!(stderr.contains(told) && !stderr.contains(PASSWORD) && !stderr.contains(EMAIL), "{command}: {stderr}");
    }
}
