//! Who may do what: super admins of the platform, users of each tenant, their sign-ins, tokens and roles.
//!
//! Super admins and their sessions live in the platform's database ([`SuperAdmins`]); a tenant's users, invites,
//! visitors, refresh tokens and API keys live in that tenant's own ([`Tokens`], [`Users`], [`ApiKeys`]). No function here takes a
//! tenant's id: a [`TenantCaller`] or a [`VerifiedApiKey`] carries the database that its token proved.
//!
//! Whoever presents a wrong credential learns nothing from the answer: not whether the account or the tenant exists,
//! nor which part was wrong, and it takes as long as a right one.

mod access_token;
mod accounts;
pub mod api_keys;
mod error;
mod invites;
mod lookups;
mod roles;
mod sign_in;
mod sign_in_throttle;
mod store;
mod super_admins;
pub mod tenant_store;
mod tokens;
mod users;
pub mod visitors;

pub use api_keys::{ApiKey, ApiKeys, NewApiKey, VerifiedApiKey};
pub use error::AccessError;
pub use invites::{Invite, InviteRequest, NewInvite, end_credentials, insert_invite};
pub use lookups::Lookups;
pub use roles::{
    AiChat, AiKeysRead, AiKeysWrite, ApiKeysRead, ApiKeysWrite, ConfigRead, ConfigWrite, ConversationsOwn,
    DatabaseManage, FeedbackRead, PERMISSIONS, Permission, Permissions, UsageRead, UsersRead, UsersWrite,
};
pub use sign_in::{Access, SignedIn};
pub use super_admins::{Created, NewSession, Session, SuperAdminSession, SuperAdmins};
pub use tenant_store::ACTIVE_USER;
pub use tokens::{ActiveUser, TenantCaller, Tokens};
pub use users::{NewUser, User, UserChanges, Users};
pub use visitors::{CountedQuestion, QuestionsToday, VisitorLimits};
