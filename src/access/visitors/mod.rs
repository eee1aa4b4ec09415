//! People who chat without an account.
//!
//! A visitor is a user of its own kind: an id that it chose nothing of, no address, no password, the role of a visitor,
//! conversations of its own. Its tokens are those of users, so nothing that checks tokens knows of visitors. It lasts as
//! long as a refresh token; then it goes, with all that was said.
//!
//! Anybody can become one at any time, so what they cost is bounded by what *all* of them do and not by what each one does:
//! how many come in an hour, and how many questions they ask in a day. The counts stand in the tenant's database and are
//! raised in one transaction before the question is looked at: questions that are asked at once cannot slip through
//! together, on any number of servers.

pub mod tenant_store;

use std::time::Duration;

use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};

use self::tenant_store::Count;
use super::sign_in::client;
use super::tenant_store::StoredUser;
use super::{AccessError, SignedIn, TenantCaller, Tokens};
use crate::api::tenant::Role;
use crate::ids::UserId;
use crate::tenant_db::TenantDb;

/// New visitors of an hour are at least so many, however few questions a day may be asked.
const FEWEST_ARRIVALS: u32 = 20;
/// The most visitors that are removed when another one comes. More than one, so that there are ever fewer.
const REMOVED_AT_ONCE: i64 = 20;
/// How many are removed in one transaction while nobody comes, and in how many of these at most at a time.
const REMOVED_TOGETHER: i64 = 100;
const REMOVED_TIMES: usize = 20;
/// What the questions of all visitors together are counted as.
const QUESTIONS: &str = "questions";
/// How long counts are kept.
const COUNTS_KEPT: TimeDelta = TimeDelta::days(2);

/// What visitors may do, as the tenant's settings say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisitorLimits {
    /// How many questions all of them may ask in a day.
    pub questions_per_day: u32,
    /// How many of these one of them may ask.
    pub questions_per_visitor: u32,
}

/// A visitor's question that was counted.
#[derive(Debug)]
pub struct CountedQuestion {
    day: DateTime<Utc>,
    /// How many more the visitor may ask today.
    pub remaining: u32,
}

/// What a visitor may ask in a day.
#[derive(Debug, Clone, Copy)]
pub struct QuestionsToday {
    /// How many.
    pub limit: u32,
    /// How many were asked.
    pub used: u32,
    /// When the next day begins.
    pub resets_at: DateTime<Utc>,
}

impl Tokens {
    /// Makes a visitor of a tenant and signs it in. `limits` are `None` where visitors are not allowed.
    ///
    /// # Errors
    /// [`AccessError::VisitorsNotAllowed`] also if there is no such tenant in service; [`AccessError::VisitorLimit`]; or
    /// a failure.
    pub async fn visit(&self, tenant: &str, limits: Option<VisitorLimits>) -> Result<SignedIn, AccessError> {
        let limits = limits.ok_or(AccessError::VisitorsNotAllowed)?;
        let db = self.database_of_slug(tenant).await?.ok_or(AccessError::VisitorsNotAllowed)?;
        let now = self.clock.now();
        let (hour, hour_over) = period(now, TimeDelta::hours(1));
        let arrivals = (limits.questions_per_day / 4).max(FEWEST_ARRIVALS);
        let visitor = new_visitor(now);
        let session = self.begin(&db, &visitor)?;

        let mut client = client(&db).await?;
        let transaction = client.transaction().await?;
        let arrival = Count { subject: "visitors".to_owned(), period_start: hour, limit: arrivals };
        if tenant_store::count(&transaction, &arrival).await?.is_none() {
            return Err(AccessError::VisitorLimit { retry_after: hour_over });
        }
        tenant_store::remove_expired(&transaction, now, now - COUNTS_KEPT, REMOVED_AT_ONCE).await?;
        tenant_store::insert(&transaction, &visitor, now + self.refresh_lifetime).await?;
        if !super::tenant_store::start_family(&transaction, &visitor, &session.family).await? {
            return Err(AccessError::VisitorsNotAllowed);
        }
        transaction.commit().await?;
        Ok(session.tokens)
    }

    /// Removes visitors whose time is over, where no other visitor comes and does it. What is too much for one time is left
    /// for the next. The connection is not kept for anybody. Returns how many were removed.
    ///
    /// # Errors
    /// If the tenant's database fails; what was removed by then stays removed.
    pub async fn remove_expired_visitors(&self, db: &TenantDb) -> Result<u64, AccessError> {
        let mut connection = client(db).await?;
        let now = self.clock.now();
        let removing = async {
            let mut removed = 0;
            for _ in 0..REMOVED_TIMES {
                let transaction = connection.transaction().await?;
                let some = tenant_store::remove_expired(&transaction, now, now - COUNTS_KEPT, REMOVED_TOGETHER).await?;
                transaction.commit().await?;
                removed += some;
                if some == 0 {
                    break;
                }
            }
            Ok::<_, AccessError>(removed)
        };
        let removed = removing.await;
        connection.discard();
        removed
    }

    /// Counts a question of a visitor's, before it is asked. Does nothing for others, and returns nothing then.
    ///
    /// # Errors
    /// [`AccessError::VisitorsNotAllowed`] if they are not allowed any more, [`AccessError::VisitorLimit`], or a failure.
    pub async fn count_question(
        &self,
        caller: &TenantCaller,
        limits: Option<VisitorLimits>,
    ) -> Result<Option<CountedQuestion>, AccessError> {
        if caller.role != Role::Visitor {
            return Ok(None);
        }
        let limits = limits.ok_or(AccessError::VisitorsNotAllowed)?;
        let (day, day_over) = period(self.clock.now(), TimeDelta::days(1));
        let own = Count { subject: caller.user_id.to_string(), period_start: day, limit: limits.questions_per_visitor };
        let all = Count { subject: QUESTIONS.to_owned(), period_start: day, limit: limits.questions_per_day };
        let reached = AccessError::VisitorLimit { retry_after: day_over };
        let mut client = caller.db.client().await?;
        let transaction = client.transaction().await?;
        // The one that everybody shares is locked last and shortest. Dropped, the transaction counts nothing.
        let Some(used) = tenant_store::count(&transaction, &own).await? else { return Err(reached) };
        if tenant_store::count(&transaction, &all).await?.is_none() {
            return Err(reached);
        }
        transaction.commit().await?;
        Ok(Some(CountedQuestion { day, remaining: limits.questions_per_visitor.saturating_sub(used) }))
    }

    /// Takes back what was counted of a question that was refused afterwards. Should that fail, or its server die before, the
    /// visitor has one question less for the day.
    ///
    /// # Errors
    /// A failure.
    pub async fn give_question_back(
        &self,
        caller: &TenantCaller,
        counted: &CountedQuestion,
    ) -> Result<(), AccessError> {
        let mut client = caller.db.client().await?;
        let transaction = client.transaction().await?;
        // In the order in which they are counted, or two that cross would wait for each other.
        tenant_store::uncount(&transaction, &caller.user_id.to_string(), counted.day).await?;
        tenant_store::uncount(&transaction, QUESTIONS, counted.day).await?;
        Ok(transaction.commit().await?)
    }

    /// What a visitor may ask today, and has asked. What others ask is not said.
    ///
    /// # Errors
    /// [`AccessError::VisitorsNotAllowed`] if they are not allowed any more, or a failure.
    pub async fn questions_today(
        &self,
        caller: &TenantCaller,
        limits: Option<VisitorLimits>,
    ) -> Result<QuestionsToday, AccessError> {
        let limit = limits.ok_or(AccessError::VisitorsNotAllowed)?.questions_per_visitor;
        let (day, _) = period(self.clock.now(), TimeDelta::days(1));
        let client = caller.db.client().await?;
        let used = tenant_store::counted_of(&client, &caller.user_id.to_string(), day).await?;
        Ok(QuestionsToday { limit, used, resets_at: day + TimeDelta::days(1) })
    }
}

/// The row of a new visitor. The address has no `@`, so that no sign-in finds it, and the hash is none of any password.
fn new_visitor(now: DateTime<Utc>) -> StoredUser {
    let id = UserId::new();
    StoredUser {
        id,
        email: format!("visitor:{id}"),
        name: String::new(),
        role: Role::Visitor,
        password_hash: String::new(),
        disabled_at: None,
        created_at: now,
    }
}

/// When the present period of this length began, in UTC, and how long it still lasts.
fn period(now: DateTime<Utc>, length: TimeDelta) -> (DateTime<Utc>, Duration) {
    let start = now.duration_trunc(length).unwrap_or(now);
    (start, (start + length - now).to_std().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::accounts::is_plausible_email;
    use super::*;

    #[test]
    fn nobody_signs_in_as_a_visitor() {
        let visitor = new_visitor(DateTime::UNIX_EPOCH);
        assert!(!is_plausible_email(&visitor.email));
        assert_eq!(visitor.email, visitor.email.to_lowercase());
        assert!(visitor.password_hash.is_empty());
    }

    #[test]
    fn periods_begin_with_the_day_and_the_hour() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::seconds(2 * 86_400 + 3_700);
        let (day, left) = period(now, TimeDelta::days(1));
        assert_eq!((day, left.as_secs()), (DateTime::UNIX_EPOCH + TimeDelta::days(2), 86_400 - 3_700));
        let (hour, left) = period(now, TimeDelta::hours(1));
        assert_eq!((hour, left.as_secs()), (now - TimeDelta::seconds(100), 3_500));
    }
}
