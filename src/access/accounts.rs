//! What accounts of both kinds have in common.

/// The form in which addresses are stored and compared.
pub(super) fn normalize_email(email: &str) -> String {
    email.trim().to_lowercase()
}

/// Whether an address can be somebody's at all. Handlers check addresses properly; this keeps what Postgres could not
/// even store from becoming a failure that tells a known tenant from an unknown one.
pub(super) fn is_plausible_email(email: &str) -> bool {
    let parts = email.split_once('@');
    email.len() <= 254
        && !email.chars().any(|c| c.is_control() || c.is_whitespace())
        && parts.is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
}

/// A name as it is stored: without control characters, and the address if nothing is left.
pub(super) fn display_name(name: Option<&str>, email: &str) -> String {
    let name: String = name.unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
    match name.trim() {
        "" => email.to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_compared_in_lower_case() {
        assert_eq!(normalize_email("  Ann@Example.COM "), "ann@example.com");
    }

    #[test]
    fn implausible_addresses() {
        for email in ["", "@", "a@", "@b", "ann", "a\0b@c", "a b@c", "a@b\n", &format!("{}@b", "a".repeat(260))] {
            assert!(!is_plausible_email(email), "{email:?}");
        }
        assert!(is_plausible_email("ann@localhost"));
    }

    #[test]
    fn a_missing_name_is_the_address() {
        assert_eq!(display_name(None, "a@b"), "a@b");
        assert_eq!(display_name(Some(" \u{0} "), "a@b"), "a@b");
        assert_eq!(display_name(Some(" Ann\u{0} Lee "), "a@b"), "Ann Lee");
    }
}
