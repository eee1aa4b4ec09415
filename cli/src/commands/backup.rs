//! `freehold backup`, `freehold tenant backup` and `freehold tenant restore`.
//!
//! A sealed file is opened here only to check it, with the same code as the server's; nothing is decrypted to a disk.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;

use freehold::api::backup::{Backup, BackupPage, CreateBackupResponse, RestoreBackupResponse};
use freehold::api::platform::Operation;
use freehold::backup_archive::{ArchiveError, ArchiveReader, ArchiveSecret, KeyKind, Summary, read_header};
use futures::StreamExt;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::{Context, note_more, pages};
use crate::args::backup::{ArchiveSecretArgs, BackupCommand, BackupKeyCommand, TenantBackupArgs, TenantRestoreArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, fields, instant, optional, table, wire};
use crate::{follow, input};

const BACKUPS: [&str; 3] = ["platform", "v1", "backups"];

/// Carries out a command.
pub async fn run(context: &Context<'_>, command: BackupCommand) -> Result<(), Failure> {
    match command {
        BackupCommand::List { tenant, page } => {
            let client = context.client()?;
            let listed = pages(&page, &[("tenant", tenant)], async |query| {
                let page: BackupPage = client.get(&BACKUPS, &query).await?;
                Ok((page.items, page.next_cursor))
            })
            .await?;
            context.output.data(&listed, || list(&listed.items))?;
            note_more(context.output, &listed);
            Ok(())
        }
        BackupCommand::Download { id, output } => {
            let client = context.client()?;
            let backup: Backup = client.get(&path(&id.to_string(), None), &[]).await?;
            fetch_to(context, &client, &backup, &output).await
        }
        BackupCommand::Delete { id } => {
            context.client()?.delete(&path(&id.to_string(), None)).await?;
            context
                .output
                .data(&json!({ "deleted": id }), || "Deleted. Copies of the file elsewhere still open.".into())
        }
        BackupCommand::Verify { file, secret } => {
            let secret = Secret::read(context.output, &secret, false)?;
            let about = check(&file, secret).await?;
            context.output.data(&about, || described(&about))
        }
        BackupCommand::Key(BackupKeyCommand::Generate { file }) => generate(context, &file),
    }
}

fn path<'a>(id: &'a str, what: Option<&'a str>) -> Vec<&'a str> {
    BACKUPS.into_iter().chain([id]).chain(what).collect()
}

/// What an archive is sealed with, as it goes into a request.
enum Secret {
    Passphrase(SecretString),
    Key(SecretString),
}

impl Secret {
    fn read(output: &Output, args: &ArchiveSecretArgs, is_new: bool) -> Result<Self, Failure> {
        match (&args.passphrase_file, &args.key_file) {
            (Some(file), _) => input::secret_from_file(file, "passphrase").map(Self::Passphrase),
            (_, Some(file)) => input::secret_from_file(file, "key").map(Self::Key),
            _ => input::ask_passphrase(output, is_new).map(Self::Passphrase),
        }
    }

    fn put_into(&self, body: &mut Value) {
        match self {
            Self::Passphrase(text) => body["passphrase"] = json!(text.expose_secret()),
            Self::Key(text) => body["key"] = json!(text.expose_secret().trim()),
        }
    }

    fn open(self) -> Result<ArchiveSecret, Failure> {
        match self {
            Self::Passphrase(text) => Ok(ArchiveSecret::Passphrase(text)),
            Self::Key(text) => {
                ArchiveSecret::key(&text).map_err(|error| Failure::usage("file_unusable", error.to_string()))
            }
        }
    }
}

impl Clone for Secret {
    fn clone(&self) -> Self {
        match self {
            Self::Passphrase(text) => Self::Passphrase(text.clone()),
            Self::Key(text) => Self::Key(text.clone()),
        }
    }
}

/// `freehold tenant backup`.
pub async fn create(context: &Context<'_>, args: TenantBackupArgs) -> Result<(), Failure> {
    let client = context.client()?;
    if let Some(output) = &args.output {
        refuse_existing(output)?;
    }
    let secret = Secret::read(context.output, &args.secret, true)?;
    let mut body = json!({});
    secret.put_into(&mut body);
    let accepted: CreateBackupResponse =
        client.post(&["platform", "v1", "tenants", &args.slug, "backups"], &body).await?;
    let id = accepted.backup.id;
    if args.detach {
        context.output.note(format!("hint: freehold operation follow {}", accepted.operation.id));
        return context.output.data(&accepted, || shown(&accepted.backup));
    }
    settled(&client, context, &accepted.operation, "freehold tenant backup").await?;
    let backup: Backup = client.get(&path(&id.to_string(), None), &[]).await?;
    match &args.output {
        Some(output) => fetch_to(context, &client, &backup, output).await,
        None => context.output.data(&backup, || shown(&backup)),
    }
}

/// Follows an operation whose key is forgotten once it fails: it is asked for again, not retried.
async fn settled(client: &Client, context: &Context<'_>, operation: &Operation, again: &str) -> Result<(), Failure> {
    let settled = follow::follow(client, context.output, operation.id).await?;
    follow::outcome(&settled).map_err(|failure| failure.hint(again).with_result(json!({ "operation": settled })))
}

/// `freehold tenant restore`.
pub async fn restore(context: &Context<'_>, args: TenantRestoreArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let secret = Secret::read(context.output, &args.secret, false)?;
    if let Some(slug) = &args.replace
        && !args.yes
    {
        let what = format!("`{slug}` goes back to what it was; everything it holds now is lost.");
        input::confirm_slug(context.output, slug, &what)?;
    }
    let (id, is_ours) = match (&args.file, args.backup) {
        (Some(file), _) => {
            let about = check(file, secret.clone()).await?;
            context.output.note(format!(
                "{} is whole: `{}` as of {}.",
                file.display(),
                about.slug,
                instant(about.created_at)
            ));
            let file = tokio::fs::File::open(file).await.map_err(|error| unreadable(file, &error))?;
            let uploaded: Backup = client.post_file(&BACKUPS, file).await?;
            (uploaded.id, true)
        }
        (None, Some(id)) => (id, false),
        (None, None) => return Err(Failure::usage("input_missing", "name a file or a backup")),
    };
    let mut body = json!({ "slug": args.slug, "replace": args.replace, "cluster": args.cluster });
    secret.put_into(&mut body);
    let asked: Result<RestoreBackupResponse, Failure> =
        client.post(&path(&id.to_string(), Some("restore")), &body).await;
    let outcome = match &asked {
        Ok(accepted) if args.detach => {
            context.output.note(format!("hint: freehold operation follow {}", accepted.operation.id));
            return context.output.data(accepted, || brought_back(accepted));
        }
        Ok(accepted) => settled(&client, context, &accepted.operation, "freehold tenant restore").await,
        Err(_) => Ok(()),
    };
    if is_ours && client.delete(&path(&id.to_string(), None)).await.is_err() {
        context.output.note("The uploaded file could not be removed; the platform does so after a day.");
    }
    let accepted = asked?;
    outcome?;
    context.output.data(&accepted, || brought_back(&accepted))
}

fn brought_back(accepted: &RestoreBackupResponse) -> String {
    fields(&[
        ("tenant id", accepted.tenant_id.to_string()),
        ("as of", instant(accepted.backup_of)),
        ("operation", accepted.operation.id.to_string()),
        ("next", "everybody signs in again; open invites have to be made anew".to_owned()),
    ])
}

/// Opens a file here and reads it to its end.
async fn check(file: &Path, secret: Secret) -> Result<Summary, Failure> {
    let (secret, file) = (secret.open()?, file.to_owned());
    let checked = tokio::task::spawn_blocking(move || -> Result<Summary, Failure> {
        let opened = File::open(&file).map_err(|error| unreadable(&file, &error))?;
        let mut source = BufReader::with_capacity(256 * 1024, opened);
        let read = || -> Result<Summary, ArchiveError> {
            let header = read_header(&mut source)?;
            let key = secret.derive(header.derivation())?;
            let (manifest, reader) = ArchiveReader::open(source, header, &key)?;
            reader.verify()?;
            Ok(manifest.about)
        };
        read().map_err(|error| refused(&file, &error))
    });
    checked.await.map_err(|error| Failure::failed("client_failed", error.to_string()))?
}

fn refused(file: &Path, error: &ArchiveError) -> Failure {
    let failure = Failure::failed(error.code(), format!("{}: {error}", file.display()));
    match error {
        ArchiveError::OtherKeyKind(KeyKind::Passphrase) => failure.hint("--passphrase-file FILE"),
        ArchiveError::OtherKeyKind(KeyKind::KeyFile) => failure.hint("--key-file FILE"),
        _ => failure,
    }
}

fn unreadable(file: &Path, error: &std::io::Error) -> Failure {
    Failure::usage("file_unusable", format!("cannot read {}: {error}", file.display()))
}

fn refuse_existing(target: &Path) -> Result<(), Failure> {
    if target != Path::new("-") && fs::symlink_metadata(target).is_ok() {
        return Err(Failure::usage("file_exists", format!("{} exists already", target.display())));
    }
    Ok(())
}

/// Fetches a sealed file and compares it with the platform's checksum, before it gets its name.
async fn fetch_to(context: &Context<'_>, client: &Client, backup: &Backup, target: &Path) -> Result<(), Failure> {
    let unwritten =
        |error: std::io::Error| Failure::failed("file_unusable", format!("cannot write {}: {error}", target.display()));
    refuse_existing(target)?;
    let mut pieces = pin!(client.download(&path(&backup.id.to_string(), Some("content"))).await?);
    let mut hash = Sha256::new();
    let to_stdout = target == Path::new("-");
    let mut file = match (to_stdout, target.parent().filter(|parent| !parent.as_os_str().is_empty())) {
        (true, _) => None,
        (false, parent) => Some(NamedTempFile::new_in(parent.unwrap_or(Path::new("."))).map_err(unwritten)?),
    };
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        hash.update(&piece);
        match &mut file {
            Some(file) => file.write_all(&piece).map_err(unwritten)?,
            None => std::io::stdout().write_all(&piece).map_err(unwritten)?,
        }
    }
    if Some(hex::encode(hash.finalize())) != backup.sha256 {
        return Err(Failure::failed("backup_damaged", "what arrived is not the file that the platform keeps"));
    }
    let Some(file) = file else {
        return std::io::stdout().flush().map_err(unwritten);
    };
    file.as_file().sync_all().map_err(unwritten)?;
    file.persist_noclobber(target).map_err(|error| unwritten(error.error))?;
    let document = json!({ "backup": backup, "file": target });
    context.output.data(&document, || format!("{}\nfile            {}", shown(backup), target.display()))
}

fn generate(context: &Context<'_>, target: &PathBuf) -> Result<(), Failure> {
    refuse_existing(target)?;
    let unwritten =
        |error: std::io::Error| Failure::failed("file_unusable", format!("cannot write {}: {error}", target.display()));
    let key = ArchiveSecret::generate_key();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target).map_err(unwritten)?;
    file.write_all(key.expose_secret().as_bytes()).map_err(unwritten)?;
    file.write_all(b"\n").map_err(unwritten)?;
    file.sync_all().map_err(unwritten)?;
    context.output.note("Keep a copy apart from the backups: without it, none of them opens again.");
    context.output.data(&json!({ "key_file": target }), || format!("Wrote {}", target.display()))
}

fn list(backups: &[Backup]) -> String {
    let rows: Vec<Vec<String>> = backups
        .iter()
        .map(|backup| {
            vec![
                backup.id.to_string(),
                optional(backup.tenant.as_ref()),
                wire(&backup.state),
                wire(&backup.origin),
                wire(&backup.key_kind),
                optional(backup.size_bytes),
                instant(backup.created_at),
            ]
        })
        .collect();
    table(&["id", "tenant", "state", "origin", "sealed with", "bytes", "created"], &rows, "No backups.")
}

fn shown(backup: &Backup) -> String {
    fields(&[
        ("backup", backup.id.to_string()),
        ("tenant", optional(backup.tenant.as_ref())),
        ("state", wire(&backup.state)),
        ("file name", backup.file_name.clone()),
        ("sealed with", wire(&backup.key_kind)),
        ("bytes", optional(backup.size_bytes)),
        ("sha256", optional(backup.sha256.as_ref())),
        ("created", instant(backup.created_at)),
    ])
}

fn described(about: &Summary) -> String {
    let head = fields(&[
        ("tenant", about.slug.clone()),
        ("name", about.name.clone()),
        ("id", about.tenant_id.to_string()),
        ("as of", instant(about.created_at)),
        ("plan", about.plan.clone()),
        ("admin", about.admin_email.clone()),
        ("database", about.database_mode.clone()),
        ("schema", about.schema_version.to_string()),
        ("postgres", (about.postgres_version / 10_000).to_string()),
        ("written by", format!("freehold {}", about.freehold_version)),
    ]);
    let rows: Vec<Vec<String>> = about
        .tables
        .iter()
        .map(|table| vec![table.table.clone(), table.rows.to_string(), table.checksum.clone()])
        .collect();
    format!("{head}\n\n{}", table(&["table", "rows", "checksum"], &rows, "No tables."))
}
