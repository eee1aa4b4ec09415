//! Whether a program and a tenant's database can speak with each other, though they may be of different versions.

use thiserror::Error;

/// The versions of the tenant schema that a program speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpokenSchemas {
    /// The oldest.
    pub oldest: i64,
    /// The newest: its own.
    pub current: i64,
}

/// Why a database cannot be spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SchemaMismatch {
    /// It has not been migrated far enough, or nobody knows how far.
    #[error("the database's schema is too old for this server")]
    TooOld,
    /// It has been migrated beyond what this program understands.
    #[error("the database's schema is too new for this server")]
    TooNew,
}

impl SpokenSchemas {
    /// Compares with what the registry says of a database: its version, and the oldest program that can speak it.
    /// Nothing is guessed: a database without a version is not spoken to, and a newer one that says nothing of older
    /// programs is too new.
    pub fn check(self, version: Option<i64>, compatible_from: Option<i64>) -> Result<(), SchemaMismatch> {
        let Some(version) = version else { return Err(SchemaMismatch::TooOld) };
        if version < self.oldest {
            return Err(SchemaMismatch::TooOld);
        }
        if version > self.current && compatible_from.unwrap_or(version) > self.current {
            return Err(SchemaMismatch::TooNew);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_speaks_what_it_can_and_guesses_nothing() {
        let server = SpokenSchemas { oldest: 3, current: 5 };
        let cases = [
            (None, None, Err(SchemaMismatch::TooOld)),
            (Some(2), Some(0), Err(SchemaMismatch::TooOld)),
            (Some(3), None, Ok(())),
            (Some(5), None, Ok(())),
            (Some(6), None, Err(SchemaMismatch::TooNew)),
            (Some(6), Some(6), Err(SchemaMismatch::TooNew)),
            (Some(6), Some(5), Ok(())),
            (Some(9), Some(0), Ok(())),
        ];
        for (version, compatible_from, expected) in cases {
            assert_eq!(server.check(version, compatible_from), expected, "{version:?} {compatible_from:?}");
        }
    }
}
