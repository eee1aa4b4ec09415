//! The commands, one module for each noun of the command line, and what they share.

pub mod audit;
pub mod backup;
pub mod cluster;
pub mod completions;
pub mod connections;
pub mod database;
pub mod doctor;
pub mod life;
pub mod migrate;
pub mod operation;
pub mod rotate;
pub mod session;
pub mod shared_model;
pub mod tenant;

use std::num::NonZeroUsize;

use serde::Serialize;

use crate::args::{GlobalArgs, PageArgs};
use crate::client::Client;
use crate::credentials::{Session, Store};
use crate::failure::Failure;
use crate::output::Output;
use crate::server::Server;

/// The largest page that is asked for at once.
const PAGE: usize = 100;

/// What every command works with.
pub struct Context<'a> {
    /// The options that hold for every command.
    pub global: GlobalArgs,
    /// Where results go.
    pub output: &'a Output,
}

impl<'a> Context<'a> {
    /// The context of one command.
    pub fn new(global: GlobalArgs, output: &'a Output) -> Self {
        Self { global, output }
    }

    /// Where sessions are kept.
    pub fn store(&self) -> Result<Store, Failure> {
        Store::open(self.global.config_dir.clone())
    }

    /// The platform to speak to and the session with it.
    pub fn session(&self) -> Result<(Server, Session), Failure> {
        let mut credentials = self.store()?.load()?;
        let Some(server) = self.global.server.clone().or(credentials.current) else {
            let known: Vec<String> = credentials.servers.keys().map(ToString::to_string).collect();
            let failure = Failure::usage("not_signed_in", "not signed in");
            return Err(if known.is_empty() {
                failure.hint("freehold login URL")
            } else {
                failure
                    .detail(format!("There are sessions with {}.", known.join(", ")))
                    .hint("--server URL, or freehold login URL")
            });
        };
        match credentials.servers.remove(&server) {
            Some(session) => Ok((server, session)),
            None => Err(Failure::usage("not_signed_in", format!("not signed in to {server}"))
                .hint(format!("freehold login {server}"))),
        }
    }

    /// A client that is signed in.
    pub fn client(&self) -> Result<Client, Failure> {
        let (server, session) = self.session()?;
        Client::new(server, Some(&session.token), self.global.insecure_http)
    }
}

/// A list as far as it was asked for.
#[derive(Debug, Serialize)]
pub struct Listed<T> {
    /// The items, in the platform's order.
    pub items: Vec<T>,
    /// Present if there are more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Fetches page after page until enough is there. `fetch` gets the query of one page.
async fn pages<T, F, R>(
    page: &PageArgs,
    filters: &[(&'static str, Option<String>)],
    fetch: F,
) -> Result<Listed<T>, Failure>
where
    F: Fn(Vec<(&'static str, String)>) -> R,
    R: Future<Output = Result<(Vec<T>, Option<String>), Failure>>,
{
    let wanted = if page.all { usize::MAX } else { NonZeroUsize::get(page.limit) };
    let mut listed = Listed { items: Vec::new(), next_cursor: None };
    loop {
        let missing = wanted.saturating_sub(listed.items.len());
        let mut query = vec![("limit", missing.min(PAGE).to_string())];
        query.extend(filters.iter().filter_map(|(name, value)| Some((*name, value.clone()?))));
        query.extend(listed.next_cursor.clone().map(|cursor| ("cursor", cursor)));
        let (items, next) = fetch(query).await?;
        // A platform that gives the same place twice would be asked for ever.
        let stuck = next.is_some() && next == listed.next_cursor;
        listed.items.extend(items);
        listed.next_cursor = next;
        if listed.next_cursor.is_none() || listed.items.len() >= wanted {
            return Ok(listed);
        }
        if stuck {
            return Err(Failure::failed("unexpected_answer", "the platform's list does not end"));
        }
    }
}

/// Says that a list was cut short, which a table does not show.
fn note_more<T>(output: &Output, listed: &Listed<T>) {
    if listed.next_cursor.is_some() {
        output.note("hint: there are more: --all, or --limit N");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(limit: usize, all: bool) -> PageArgs {
        PageArgs { limit: NonZeroUsize::new(limit).unwrap(), all }
    }

    /// A platform with 250 items, whose cursor is the place of the next one.
    async fn platform(query: Vec<(&'static str, String)>) -> Result<(Vec<usize>, Option<String>), Failure> {
        let value = |wanted: &str| query.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.clone());
        assert_eq!(value("state").as_deref(), Some("active"));
        assert_eq!(value("tenant"), None);
        let begin: usize = value("cursor").map_or(0, |cursor| cursor.parse().unwrap());
        let end = (begin + value("limit").unwrap().parse::<usize>().unwrap()).min(250);
        Ok(((begin..end).collect(), (end < 250).then(|| end.to_string())))
    }

    #[tokio::test]
    async fn lists_are_fetched_as_far_as_asked() {
        let filters = [("state", Some("active".to_owned())), ("tenant", None)];
        let some = pages(&page(130, false), &filters, platform).await.unwrap();
        assert_eq!((some.items.len(), some.next_cursor.as_deref()), (130, Some("130")));
        let all = pages(&page(50, true), &filters, platform).await.unwrap();
        assert_eq!((all.items.len(), all.next_cursor), (250, None));
    }
}
