//! Everything that must not leak: keys, sealed values, tokens, passwords and database addresses.
//!
//! A master key ([`MasterKeyring`], outside every database) wraps one data key a tenant ([`DataKey`]), which seals
//! that tenant's secrets ([`Sealed`]). A sealed value opens only at the place it was sealed for ([`Location`]).
//! Nothing here reads a database, a configuration or the clock, and no type here prints what it protects.

mod database_url;
mod envelope;
mod keyring;
mod passwords;
mod tls;
mod tokens;

pub use database_url::{DatabaseUrl, DatabaseUrlError, Host, SslMode};
pub use envelope::{DataKey, Location, OpenError, Sealed};
pub use keyring::{KeyringError, MasterKeyring};
pub use passwords::{PasswordError, PasswordHasher, PasswordPolicyError, check_password_policy, generate_password};
pub use tls::{
    CONNECT_TIMEOUT, ConnectError, Connector, ResolveError, TlsError, connect, connect_as_administrator, connector,
    judge_address,
};
pub use tokens::{HashedToken, HashedTokenLengthError, PlainToken, TokenPrefix, TokenShapeError};
