//! Roles, the permissions they stand for, and who may administer whom.

use serde::{Deserialize, Serialize};

use crate::api::tenant::Role;

/// A permission that a handler can ask for by type.
pub trait Permission: Send + Sync + 'static {
    /// Its name, `area:action`.
    const NAME: &'static str;
}

macro_rules! permissions {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub struct $name;

            impl Permission for $name {
                const NAME: &'static str = $text;
            }
        )+

        /// The name of every permission there is.
        pub const PERMISSIONS: &[&str] = &[$($text),+];
    };
}

permissions! {
    /// Ask the tenant's models.
    AiChat = "ai:chat",
    /// See the tenant's users.
    UsersRead = "users:read",
    /// Create, change and delete users, as far as [`Role::governs`] reaches.
    UsersWrite = "users:write",
    /// See the chat settings.
    ConfigRead = "config:read",
    /// Change the chat settings.
    ConfigWrite = "config:write",
    /// See which AI keys there are, never the keys themselves.
    AiKeysRead = "ai-keys:read",
    /// Set, test and delete AI keys.
    AiKeysWrite = "ai-keys:write",
    /// See which API keys there are, never the keys themselves.
    ApiKeysRead = "api-keys:read",
    /// Create and revoke API keys.
    ApiKeysWrite = "api-keys:write",
    /// See where the tenant's own database is, and give new credentials for it.
    DatabaseManage = "database:manage",
    /// See what the tenant's model calls have used, and what they cost.
    UsageRead = "usage:read",
    /// See and delete one's own conversations.
    ConversationsOwn = "conversations:own",
    /// See what users think of their answers, with the beginning of what they asked and were told.
    FeedbackRead = "feedback:read",
}

/// What somebody may do. An entry is a permission's name, `area:*` for all of an area, or `*` for everything; nothing
/// else is a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Permissions(Vec<String>);

impl Permissions {
    fn of(names: &[&str]) -> Self {
        Self(names.iter().map(|name| (*name).to_owned()).collect())
    }

    /// Whether the permission of this name is among them.
    #[must_use]
    pub fn allow(&self, name: &str) -> bool {
        self.0.iter().any(|entry| covers(entry, name))
    }

    /// Whether whoever has `other` may do nothing that whoever has these may not.
    #[must_use]
    pub fn cover(&self, other: &Self) -> bool {
        // A pattern is covered by itself and by wider ones, just as a name is.
        other.0.iter().all(|entry| self.allow(entry))
    }

    /// The entries, as they stand in a token.
    #[must_use]
    pub fn entries(&self) -> &[String] {
        &self.0
    }
}

fn covers(entry: &str, name: &str) -> bool {
    if entry == "*" || entry == name {
        return true;
    }
    match entry.strip_suffix(":*") {
        Some(area) if !area.contains([':', '*']) => {
            name.strip_prefix(area).and_then(|rest| rest.strip_prefix(':')).is_some_and(|action| !action.is_empty())
        }
        _ => false,
    }
}

impl Role {
    /// Every role that somebody can be given. Visitors come by themselves.
    pub(super) const ALL: [Self; 3] = [Self::Admin, Self::Manager, Self::User];

    /// The roles that this one may change.
    pub(super) fn governed(self) -> Vec<Self> {
        Self::ALL.into_iter().filter(|other| self.governs(*other)).collect()
    }

    /// The name in the database and in tokens.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Manager => "manager",
            Self::User => "user",
            Self::Visitor => "visitor",
        }
    }

    /// Reads the name in the database; the column's CHECK knows the same names. Any other is the least of roles.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "admin" => Self::Admin,
            "manager" => Self::Manager,
            "user" => Self::User,
            _ => Self::Visitor,
        }
    }

    /// What this role may do.
    #[must_use]
    pub fn permissions(self) -> Permissions {
        match self {
            Self::Admin => Permissions::of(&["*"]),
            Self::Manager => Permissions::of(&["users:*", ConfigRead::NAME, AiChat::NAME, ConversationsOwn::NAME]),
            Self::User | Self::Visitor => Permissions::of(&[AiChat::NAME, ConversationsOwn::NAME]),
        }
    }

    /// Whether this role may give `other` to somebody, and change, disable or delete somebody who has it. A role
    /// governs those that may do less than itself; only one that may do everything governs its equals. A visitor is no
    /// account: nobody makes one or changes one, and it governs nobody.
    #[must_use]
    pub fn governs(self, other: Self) -> bool {
        if self == Self::Visitor || other == Self::Visitor {
            return false;
        }
        let (own, others) = (self.permissions(), other.permissions());
        own.cover(&others) && (own.allow("*") || !others.cover(&own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 4] = [Role::Admin, Role::Manager, Role::User, Role::Visitor];

    fn permissions(entries: &[&str]) -> Permissions {
        Permissions::of(entries)
    }

    #[test]
    fn wildcards_cover_an_area_or_everything() {
        assert!(permissions(&["users:*"]).allow("users:read"));
        assert!(permissions(&["*"]).allow("ai-keys:write"));
        assert!(permissions(&["x", "users:read"]).allow("users:read"));
        for entry in
            ["users:read", "user:*", "users", "users:", "users*", "us*", "*:write", "users:w*", "users:*:*", ""]
        {
            assert!(!permissions(&[entry]).allow("users:write"), "{entry}");
        }
        assert!(!permissions(&["users:*"]).allow("users"));
        assert!(!permissions(&["users:*"]).allow("users:"));
        assert!(!permissions(&["users:*"]).allow("users-all:read"));
        assert!(!permissions(&["*:*"]).allow("users:read"));
        assert!(!permissions(&[]).allow("users:read"));
    }

    #[test]
    fn a_pattern_is_covered_only_by_itself_and_by_wider_ones() {
        assert!(permissions(&["users:*"]).cover(&permissions(&["users:*", "users:read"])));
        assert!(!permissions(&["users:read", "users:write"]).cover(&permissions(&["users:*"])));
        assert!(!permissions(&["users:*"]).cover(&permissions(&["*"])));
        assert!(permissions(&["*"]).cover(&permissions(&["*", "a:*", "b:c"])));
    }

    #[test]
    fn roles_have_the_permissions_that_the_interface_documents() {
        let allowed =
            |role: Role| PERMISSIONS.iter().copied().filter(|name| role.permissions().allow(name)).collect::<Vec<_>>();
        assert_eq!(allowed(Role::Admin), PERMISSIONS);
        assert_eq!(
            allowed(Role::Manager),
            ["ai:chat", "users:read", "users:write", "config:read", "conversations:own"]
        );
        assert_eq!(allowed(Role::User), ["ai:chat", "conversations:own"]);
        assert_eq!(allowed(Role::Visitor), ["ai:chat", "conversations:own"]);
    }

    #[test]
    fn only_admins_govern_their_equals() {
        let governed = |role: Role| ROLES.into_iter().filter(|other| role.governs(*other)).collect::<Vec<_>>();
        assert_eq!(governed(Role::Admin), [Role::Admin, Role::Manager, Role::User]);
        assert_eq!(governed(Role::Manager), [Role::User]);
        assert_eq!(governed(Role::User), []);
        assert_eq!(governed(Role::Visitor), []);
    }

    #[test]
    fn names_round_trip() {
        for role in ROLES {
            assert_eq!(Role::parse(role.as_str()), role);
        }
        assert_eq!(Role::parse("root"), Role::Visitor);
    }
}
