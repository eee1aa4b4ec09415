//! Identifiers. Each kind is its own type, so that a user's id cannot be passed where a tenant's is meant.

use std::borrow::Borrow;
use std::error::Error;
use std::fmt;
use std::str::FromStr;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use utoipa::ToSchema;
use uuid::Uuid;

/// Declares one identifier type over a UUID that both Postgres drivers, serde and the OpenAPI document understand.
macro_rules! uuid_ids {
    ($($(#[$doc:meta])* $name:ident,)+) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, sqlx::Type, ToSchema,
        )]
        #[serde(transparent)]
        #[sqlx(transparent)]
        #[schema(value_type = String, format = Uuid)]
        pub struct $name(Uuid);

        impl $name {
            /// A new identifier: UUID version 7, so that rows made one after another lie close together in an index.
            #[expect(
                clippy::new_without_default,
                reason = "a default value that differs every time would surprise"
            )]
            #[must_use]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The identifier with these bits.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The bits of this identifier.
            #[must_use]
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl ToSql for $name {
            fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
                self.0.to_sql(ty, out)
            }

            fn accepts(ty: &Type) -> bool {
                <Uuid as ToSql>::accepts(ty)
            }

            to_sql_checked!();
        }

        impl<'a> FromSql<'a> for $name {
            fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
                Uuid::from_sql(ty, raw).map(Self)
            }

            fn accepts(ty: &Type) -> bool {
                <Uuid as FromSql<'_>>::accepts(ty)
            }
        }
    )+};
}

uuid_ids! {
    /// One client company.
    TenantId,
    /// One operator of the whole platform.
    SuperAdminId,
    /// One signed-in session of a super admin.
    PlatformSessionId,
    /// One durable operation, such as creating a tenant.
    OperationId,
    /// One Postgres server on which tenant databases are created.
    ClusterId,
    /// One AI key that the owner lends to tenants.
    SharedModelId,
    /// One person within a tenant.
    UserId,
    /// One conversation.
    ChatSessionId,
    /// One message of a conversation.
    MessageId,
    /// One image of a question.
    ImageId,
    /// One configured model provider of a tenant.
    ApiConfigurationId,
    /// One key that signs a tenant's access tokens.
    SigningKeyId,
    /// One invitation.
    InviteId,
    /// One backup of a tenant.
    BackupId,
    /// One chain of refresh tokens that replace each other, which are revoked together.
    RefreshFamilyId,
    /// One key of a tenant's for programs that speak OpenAI's API.
    ApiKeyId,
    /// One call of a model.
    ModelCallId,
}

/// Words a tenant may not take, because they are, or may become, host names or paths of the platform itself, or
/// names that mislead.
const RESERVED_SLUGS: &[&str] = &[
    "account",
    "accounts",
    "admin",
    "administrator",
    "api",
    "app",
    "assets",
    "auth",
    "billing",
    "blog",
    "cdn",
    "console",
    "dashboard",
    "default",
    "docs",
    "freehold",
    "ftp",
    "health",
    "healthz",
    "help",
    "host",
    "internal",
    "invite",
    "invites",
    "localhost",
    "login",
    "logout",
    "mail",
    "metrics",
    "none",
    "null",
    "oauth",
    "openapi",
    "operator",
    "platform",
    "postgres",
    "postgresql",
    "public",
    "readyz",
    "root",
    "security",
    "signup",
    "smtp",
    "static",
    "status",
    "superadmin",
    "support",
    "system",
    "template",
    "template0",
    "template1",
    "tenant",
    "tenants",
    "test",
    "undefined",
    "user",
    "users",
    "webhook",
    "webhooks",
    "webmail",
    "www",
];

/// A tenant's short name, as it stands in addresses, host names and database names.
///
/// It has 3 to 40 characters of `a-z`, `0-9` and `-`, starts with a letter, has no hyphen at the end or next to
/// another, and is not one of the reserved words. A value read from a database is not checked again.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[sqlx(transparent)]
#[schema(value_type = String, min_length = 3, max_length = 40, pattern = "^[a-z][a-z0-9]*(-[a-z0-9]+)*$", example = "acme")]
pub struct Slug(String);

/// Why a text is not a slug. The messages are meant for the person who typed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlugError {
    /// Too short or too long.
    #[error("a short name has 3 to 40 characters")]
    Length,
    /// The first character is no letter.
    #[error("a short name starts with a lower-case letter from a to z")]
    Start,
    /// A character outside the permitted ones.
    #[error("a short name holds only lower-case letters from a to z, digits and hyphens")]
    Character,
    /// A hyphen at the end or two in a row.
    #[error("a short name neither ends with a hyphen nor holds two in a row")]
    Hyphen,
    /// A word the platform keeps for itself.
    #[error("this short name is reserved; please choose another")]
    Reserved,
}

impl Slug {
    /// The slug as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn check(text: &str) -> Result<(), SlugError> {
        if !(3..=40).contains(&text.chars().count()) {
            return Err(SlugError::Length);
        }
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(SlugError::Start);
        }
        if !text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
            return Err(SlugError::Character);
        }
        if text.ends_with('-') || text.contains("--") {
            return Err(SlugError::Hyphen);
        }
        if RESERVED_SLUGS.contains(&text) {
            return Err(SlugError::Reserved);
        }
        Ok(())
    }
}

impl FromStr for Slug {
    type Err = SlugError;

    fn from_str(text: &str) -> Result<Self, SlugError> {
        Self::check(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Slug {
    type Error = SlugError;

    fn try_from(text: String) -> Result<Self, SlugError> {
        Self::check(&text)?;
        Ok(Self(text))
    }
}

impl From<Slug> for String {
    fn from(slug: Slug) -> Self {
        slug.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Slug {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Slug {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy as _, prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn ids_round_trip_through_text_json_and_postgres() {
        let id = TenantId::new();
        assert_eq!(id.to_string().parse::<TenantId>().unwrap(), id);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<TenantId>(&format!("\"{id}\"")).unwrap(), id);
        let mut out = BytesMut::new();
        id.to_sql(&Type::UUID, &mut out).unwrap();
        assert_eq!(TenantId::from_sql(&Type::UUID, &out).unwrap(), id);
        assert!(!<TenantId as ToSql>::accepts(&Type::TEXT));
        assert_eq!(id.as_uuid().get_version_num(), 7);
        assert!("not an id".parse::<UserId>().is_err());
    }

    #[test]
    fn the_schema_of_an_id_is_a_uuid_string() {
        use utoipa::PartialSchema as _;
        let schema = serde_json::to_value(TenantId::schema()).unwrap();
        assert_eq!(schema["type"], "string");
        assert_eq!(schema["format"], "uuid");
    }

    #[test]
    fn slugs_are_refused_for_the_right_reason() {
        for (text, reason) in [
            ("", SlugError::Length),
            ("ab", SlugError::Length),
            ("1abc", SlugError::Start),
            ("-abc", SlugError::Start),
            ("Abc", SlugError::Start),
            ("ébc", SlugError::Start),
            ("aBc", SlugError::Character),
            ("a_c", SlugError::Character),
            ("a c", SlugError::Character),
            ("acme\n", SlugError::Character),
            ("acmé", SlugError::Character),
            ("abc-", SlugError::Hyphen),
            ("a--c", SlugError::Hyphen),
            ("admin", SlugError::Reserved),
            ("postgres", SlugError::Reserved),
        ] {
            assert_eq!(text.parse::<Slug>(), Err(reason), "{text:?}");
        }
        assert_eq!("a".repeat(41).parse::<Slug>(), Err(SlugError::Length));
        for text in ["abc", "acme-2", "a1-b2-c3", &"a".repeat(40)] {
            assert_eq!(text.parse::<Slug>().unwrap().as_str(), text);
        }
        assert!(serde_json::from_str::<Slug>("\"Not OK\"").is_err());
        assert_eq!(serde_json::from_str::<Slug>("\"acme\"").unwrap().as_ref(), "acme");
    }

    #[test]
    fn every_reserved_word_would_otherwise_be_a_slug() {
        for word in RESERVED_SLUGS {
            assert_eq!(Slug::check(word), Err(SlugError::Reserved), "{word}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_safe_in_a_host_name(text in "[a-zA-Z0-9_. -]{0,45}") {
            if let Ok(slug) = text.parse::<Slug>() {
                prop_assert!(slug.as_str().len() <= 40);
                prop_assert!(slug.as_str().split('-').all(|part| !part.is_empty()));
                prop_assert!(slug.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            }
        }

        #[test]
        fn well_formed_words_are_accepted(text in "[a-z][a-z0-9]{1,8}(-[a-z0-9]{1,8}){1,3}".prop_filter("length", |t| t.len() <= 40)) {
            prop_assert_eq!(text.parse::<Slug>().unwrap().to_string(), text);
        }
    }
}
