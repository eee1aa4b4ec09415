//! What requests do with a connection: statements, prepared once a connection, and transactions.
//!
//! A future that is dropped before its statement was answered leaves the connection waiting for that answer. Such a
//! connection is **cut**: whoever used it next would wait for a statement of somebody else's, so it is not used again.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row, Statement, ToStatement};

use super::server::Lease;

/// Prepared statements kept a connection. There are some fifty in all; the bound is for what nobody foresees.
const STATEMENTS: usize = 256;

/// What can carry out statements: a connection or a transaction on one.
pub trait GenericClient: Sync {
    /// A prepared statement, made once a connection.
    fn prepare_cached(&self, sql: &str) -> impl Future<Output = Result<Statement, Error>> + Send;

    /// All rows.
    fn query<T: ?Sized + ToStatement + Sync>(
        &self,
        statement: &T,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> impl Future<Output = Result<Vec<Row>, Error>> + Send;

    /// One row or none.
    fn query_opt<T: ?Sized + ToStatement + Sync>(
        &self,
        statement: &T,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> impl Future<Output = Result<Option<Row>, Error>> + Send;

    /// Exactly one row.
    fn query_one<T: ?Sized + ToStatement + Sync>(
        &self,
        statement: &T,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> impl Future<Output = Result<Row, Error>> + Send;

    /// The number of rows that were changed.
    fn execute<T: ?Sized + ToStatement + Sync>(
        &self,
        statement: &T,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Several statements without parameters.
    fn batch_execute(&self, sql: &str) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Makes each method of [`GenericClient`] wrap the one of `self.$inner` in `watch`.
macro_rules! watched {
    ($inner:ident) => {
        async fn prepare_cached(&self, sql: &str) -> Result<Statement, Error> {
            let known = self.kept.statements().get(sql).cloned();
            match known {
                Some(statement) => Ok(statement),
                None => {
                    let statement = self.kept.watch(self.$inner.prepare(sql)).await?;
                    self.kept.keep(sql, &statement);
                    Ok(statement)
                }
            }
        }

        async fn query<T: ?Sized + ToStatement + Sync>(
            &self,
            statement: &T,
            parameters: &[&(dyn ToSql + Sync)],
        ) -> Result<Vec<Row>, Error> {
            self.kept.watch(self.$inner.query(statement, parameters)).await
        }

        async fn query_opt<T: ?Sized + ToStatement + Sync>(
            &self,
            statement: &T,
            parameters: &[&(dyn ToSql + Sync)],
        ) -> Result<Option<Row>, Error> {
            self.kept.watch(self.$inner.query_opt(statement, parameters)).await
        }

        async fn query_one<T: ?Sized + ToStatement + Sync>(
            &self,
            statement: &T,
            parameters: &[&(dyn ToSql + Sync)],
        ) -> Result<Row, Error> {
            self.kept.watch(self.$inner.query_one(statement, parameters)).await
        }

        async fn execute<T: ?Sized + ToStatement + Sync>(
            &self,
            statement: &T,
            parameters: &[&(dyn ToSql + Sync)],
        ) -> Result<u64, Error> {
            self.kept.watch(self.$inner.execute(statement, parameters)).await
        }

        async fn batch_execute(&self, sql: &str) -> Result<(), Error> {
            self.kept.watch(self.$inner.batch_execute(sql)).await
        }
    };
}

/// Whether a database refused a statement for what it says: values, constraints and statements that are wrong stay wrong.
/// All other refusals are the server's state, such as that of a standby that has not taken over yet, and may pass.
pub fn is_statement_at_fault(error: &Error) -> bool {
    error.code().is_some_and(|code| ["21", "22", "23", "42"].iter().any(|class| code.code().starts_with(class)))
}

/// Whether nobody knows if a statement that failed was carried out. Without a code there was no answer, and a pooler says 08 for
/// the same; a server that is shut down may say so (57P) behind a commit.
pub fn is_outcome_unknown(error: &Error) -> bool {
    error.code().is_none_or(|code| ["08", "57P"].iter().any(|class| code.code().starts_with(class)))
}

/// What is remembered of a connection.
#[derive(Default)]
struct Kept {
    statements: Mutex<HashMap<Box<str>, Statement>>,
    cut: AtomicBool,
}

impl Kept {
    fn statements(&self) -> std::sync::MutexGuard<'_, HashMap<Box<str>, Statement>> {
        self.statements.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, sql: &str, statement: &Statement) {
        let mut statements = self.statements();
        if statements.len() < STATEMENTS {
            statements.insert(sql.into(), statement.clone());
        }
    }

    /// Carries a statement out, and notes if nobody waited for its end.
    async fn watch<T>(&self, statement: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let unanswered = Unanswered(&self.cut);
        let result = statement.await;
        std::mem::forget(unanswered);
        if let Err(error) = &result
            // A prepared statement that no longer fits: the table has changed, or the session behind us has.
            && error.code().is_some_and(|code| {
                [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INVALID_SQL_STATEMENT_NAME].contains(code)
            })
        {
            self.cut.store(true, Ordering::Release);
        }
        result
    }
}

/// Dropped, it says that the answer will find nobody.
struct Unanswered<'a>(&'a AtomicBool);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The client's side of a connection.
pub struct Session {
    // First, so that it goes first: a prepared statement that outlives its connection sends nothing when it goes.
    client: tokio_postgres::Client,
    kept: Kept,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("closed", &self.client.is_closed()).finish_non_exhaustive()
    }
}

impl GenericClient for Session {
    watched!(client);
}

impl Session {
    pub(super) fn new(client: tokio_postgres::Client) -> Self {
        Self { client, kept: Kept::default() }
    }

    /// Begins a transaction, which is rolled back unless it is committed.
    ///
    /// # Errors
    /// If the database refuses or is away.
    pub async fn transaction(&mut self) -> Result<Transaction<'_>, Error> {
        let Self { client, kept } = self;
        let transaction = kept.watch(client.transaction()).await?;
        Ok(Transaction { transaction, kept })
    }

    /// Whether nothing can be asked of it any more.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Whether somebody left it while it was busy, or it must not be used again for another reason.
    pub(super) fn is_cut(&self) -> bool {
        self.kept.cut.load(Ordering::Acquire)
    }

    fn cut(&self) {
        self.kept.cut.store(true, Ordering::Release);
    }
}

/// A transaction. Dropped without a commit it is rolled back: the order is queued before anything that comes later on
/// the connection.
pub struct Transaction<'a> {
    transaction: tokio_postgres::Transaction<'a>,
    kept: &'a Kept,
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}

impl GenericClient for Transaction<'_> {
    watched!(transaction);
}

impl Transaction<'_> {
    /// Commits.
    ///
    /// # Errors
    /// If the database refuses or is away; then nobody knows whether it happened.
    pub async fn commit(self) -> Result<(), Error> {
        let Self { transaction, kept } = self;
        kept.watch(transaction.commit()).await
    }

    /// Rolls back, and waits for it.
    ///
    /// # Errors
    /// If the database is away, which rolls back as well.
    pub async fn rollback(self) -> Result<(), Error> {
        let Self { transaction, kept } = self;
        kept.watch(transaction.rollback()).await
    }
}

/// Statements on a transaction of a connection outside the pools, such as provisioning's.
impl GenericClient for tokio_postgres::Transaction<'_> {
    async fn prepare_cached(&self, sql: &str) -> Result<Statement, Error> {
        self.prepare(sql).await
    }

    async fn query<T: ?Sized + ToStatement + Sync>(
        &self,
        statement: &T,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        tokio_postgres::Transaction::query(self, statement, parameters).await
    }

    async fn query_opt<T: ?Sized + ToStatement + Sync>(
        &self,
        statement: &T,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Error> {
        tokio_postgres::Transaction::query_opt(self, statement, parameters).await
    }

    async fn query_one<T: ?Sized + ToStatement + Sync>(
        &self,
        statement: &T,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, Error> {
        tokio_postgres::Transaction::query_one(self, statement, parameters).await
    }

    async fn execute<T: ?Sized + ToStatement + Sync>(
        &self,
        statement: &T,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Error> {
        tokio_postgres::Transaction::execute(self, statement, parameters).await
    }

    async fn batch_execute(&self, sql: &str) -> Result<(), Error> {
        tokio_postgres::Transaction::batch_execute(self, sql).await
    }
}

/// A connection of a tenant's pool, for as long as it is held. Give it back, by dropping it, before anything slow.
#[derive(Debug)]
pub struct Client(pub(super) Lease);

impl Client {
    /// Gives it back for good: nobody will use this connection again.
    pub fn discard(self) {
        self.0.session().cut();
    }
}

impl Deref for Client {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.0.session()
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Session {
        self.0.session_mut()
    }
}

impl GenericClient for Client {
    async fn prepare_cached(&self, sql: &str) -> Result<Statement, Error> {
        self.0.session().prepare_cached(sql).await
    }

    async fn query<T: ?Sized + ToStatement + Sync>(
        &self,
        statement: &T,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        self.0.session().query(statement, parameters).await
    }

    async fn query_opt<T: ?Sized + ToStatement + Sync>(
        &self,
        statement: &T,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Error> {
        self.0.session().query_opt(statement, parameters).await
    }

    async fn query_one<T: ?Sized + ToStatement + Sync>(
        &self,
        statement: &T,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, Error> {
        self.0.session().query_one(statement, parameters).await
    }

    async fn execute<T: ?Sized + ToStatement + Sync>(
        &self,
        statement: &T,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Error> {
        self.0.session().execute(statement, parameters).await
    }

    async fn batch_execute(&self, sql: &str) -> Result<(), Error> {
        self.0.session().batch_execute(sql).await
    }
}
