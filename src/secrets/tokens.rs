//! Bearer tokens. The plain token is shown once to whoever it is for; only its hash is stored.

use std::error::Error;
use std::fmt;
use std::hash::{Hash, Hasher};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::BytesMut;
use rand::TryRng as _;
use rand::rngs::{SysError, SysRng};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::ids::TenantId;

/// Random bytes in a token.
const RANDOM_LENGTH: usize = 32;
/// Length of a SHA-256 hash in bytes.
const HASH_LENGTH: usize = 32;

/// What a token is for. The prefix is part of the token and of its hash, so a token of one kind is never one of
/// another, and secret scanners can recognise it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenPrefix {
    /// `fhs_`: a super admin's session.
    SuperAdminSession,
    /// `fhr_`: a refresh token of a tenant's user.
    Refresh,
    /// `fhi_`: an invitation.
    Invite,
    /// `fhd_`: lets a client give its database.
    Database,
    /// `fh_`: a key with which a client's programs call the OpenAI-compatible endpoint.
    ApiKey,
}

impl TokenPrefix {
    /// The prefix as text, with its underscore.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SuperAdminSession => "fhs_",
            Self::Refresh => "fhr_",
            Self::Invite => "fhi_",
            Self::Database => "fhd_",
            Self::ApiKey => "fh_",
        }
    }
}

/// A text does not have the shape of the expected kind of token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token of the expected kind")]
pub struct TokenShapeError;

/// A token in the clear: the prefix and 32 random bytes as 43 characters of base64url. It is wiped when dropped.
pub struct PlainToken(SecretString);

impl PlainToken {
    /// A new random token.
    ///
    /// # Errors
    /// If the operating system cannot supply random bytes.
    pub fn generate(prefix: TokenPrefix) -> Result<Self, SysError> {
        let text = Zeroizing::new([prefix.as_str(), &random_part()?].concat());
        Ok(Self(SecretString::from(text.as_str())))
    }

    /// A new random token that names the tenant in whose database it is kept: prefix, tenant, `_`, random part. The
    /// tenant is part of what is hashed, so a token with another tenant put in is another token.
    ///
    /// # Errors
    /// If the operating system cannot supply random bytes.
    pub fn generate_for_tenant(prefix: TokenPrefix, tenant: TenantId) -> Result<Self, SysError> {
        let tenant = tenant.as_uuid().simple().to_string();
        let text = Zeroizing::new([prefix.as_str(), &tenant, "_", &random_part()?].concat());
        Ok(Self(SecretString::from(text.as_str())))
    }

    /// Takes a token that somebody presented. Only its shape is checked: whether it exists is for the store to say.
    ///
    /// # Errors
    /// [`TokenShapeError`] if the prefix is another, or the rest is not 32 bytes in base64url without padding.
    pub fn parse(prefix: TokenPrefix, text: &str) -> Result<Self, TokenShapeError> {
        check_random_part(text.strip_prefix(prefix.as_str()).ok_or(TokenShapeError)?)?;
        Ok(Self(SecretString::from(text)))
    }

    /// Takes a token that somebody presented and the tenant that it names. Neither is proved: that tenant's database
    /// has to know the token.
    ///
    /// # Errors
    /// [`TokenShapeError`] if the text was not made by [`PlainToken::generate_for_tenant`] with this prefix.
    pub fn parse_for_tenant(prefix: TokenPrefix, text: &str) -> Result<(TenantId, Self), TokenShapeError> {
        let rest = text.strip_prefix(prefix.as_str()).ok_or(TokenShapeError)?;
        let (tenant, encoded) = rest.split_once('_').ok_or(TokenShapeError)?;
        check_random_part(encoded)?;
        let id = Uuid::try_parse(tenant).map_err(|_| TokenShapeError)?;
        if id.simple().to_string() != tenant {
            return Err(TokenShapeError);
        }
        Ok((TenantId::from_uuid(id), Self(SecretString::from(text))))
    }

    /// The token itself, to hand to whoever it is for.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The last four characters, by which people tell tokens apart. 232 random bits remain unknown.
    #[must_use]
    pub fn hint(&self) -> String {
        let text = self.expose();
        format!("…{}", text.get(text.len().saturating_sub(4)..).unwrap_or_default())
    }

    /// The hash to store and to look the token up by. A plain hash is enough, since the token is 256 random bits.
    #[must_use]
    pub fn hash(&self) -> HashedToken {
        HashedToken(Sha256::digest(self.expose()).into())
    }
}

fn random_part() -> Result<Zeroizing<String>, SysError> {
    let mut random = Zeroizing::new([0; RANDOM_LENGTH]);
    SysRng.try_fill_bytes(random.as_mut_slice())?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_slice())))
}

fn check_random_part(encoded: &str) -> Result<(), TokenShapeError> {
    // The length is checked first, so that a huge header is not decoded at all.
    if encoded.len() != (RANDOM_LENGTH * 4).div_ceil(3) {
        return Err(TokenShapeError);
    }
    URL_SAFE_NO_PAD.decode(encoded).map(|bytes| drop(Zeroizing::new(bytes))).map_err(|_| TokenShapeError)
}

impl fmt::Debug for PlainToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlainToken([REDACTED])")
    }
}

/// SHA-256 of a token, as stored in a `bytea` column. Comparison takes the same time wherever the hashes differ.
#[derive(Clone, Copy, sqlx::Type)]
#[sqlx(transparent)]
pub struct HashedToken([u8; HASH_LENGTH]);

/// Stored bytes are not as long as a token's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hashed token has 32 bytes")]
pub struct HashedTokenLengthError;

impl HashedToken {
    /// The 32 bytes of the hash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<&[u8]> for HashedToken {
    type Error = HashedTokenLengthError;

    fn try_from(bytes: &[u8]) -> Result<Self, HashedTokenLengthError> {
        bytes.try_into().map(Self).map_err(|_| HashedTokenLengthError)
    }
}

impl PartialEq for HashedToken {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for HashedToken {}

/// So that a token's hash can be looked up in memory. It is no secret worth timing: whoever does not have the token
/// cannot choose its bytes.
impl Hash for HashedToken {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl fmt::Debug for HashedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashedToken([REDACTED])")
    }
}

impl ToSql for HashedToken {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.as_bytes().to_sql(ty, out)
    }

    fn accepts(ty: &Type) -> bool {
        <&[u8] as ToSql>::accepts(ty)
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for HashedToken {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self::try_from(<&[u8]>::from_sql(ty, raw)?)?)
    }

    fn accepts(ty: &Type) -> bool {
        <&[u8] as FromSql<'_>>::accepts(ty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [TokenPrefix; 5] = [
        TokenPrefix::SuperAdminSession,
        TokenPrefix::Refresh,
        TokenPrefix::Invite,
        TokenPrefix::Database,
        TokenPrefix::ApiKey,
    ];

    #[test]
    fn tokens_parse_back_and_only_as_their_own_kind() {
        for prefix in KINDS {
            let token = PlainToken::generate(prefix).unwrap();
            assert_eq!(token.expose().len(), prefix.as_str().len() + 43);
            let parsed = PlainToken::parse(prefix, token.expose()).unwrap();
            assert_eq!(parsed.hash(), token.hash());
            for other in KINDS.into_iter().filter(|kind| *kind != prefix) {
                assert!(PlainToken::parse(other, token.expose()).is_err());
            }
            assert_ne!(token.hash(), PlainToken::generate(prefix).unwrap().hash());
        }
    }

    #[test]
    fn a_hint_is_the_end_of_the_token() {
        let token = PlainToken::parse(TokenPrefix::ApiKey, &format!("fh_{}wxyA", "A".repeat(39))).unwrap();
        assert_eq!(token.hint(), "…wxyA");
    }

    #[test]
    fn misshapen_tokens_are_refused() {
        let token = PlainToken::generate(TokenPrefix::Refresh).unwrap();
        let text = token.expose();
        for bad in [
            String::new(),
            "fhr_".to_owned(),
            text[..text.len() - 1].to_owned(),
            format!("{text}A"),
            format!("{text}="),
            format!(" {text}"),
            text.to_uppercase(),
            format!("fhr_{}", "+".repeat(43)),
            // The last character carries four bits of the token; other bits there would be a second spelling of it.
            format!("fhr_{}B", "A".repeat(42)),
            format!("fhr_{}", "é".repeat(21) + "A"),
        ] {
            assert!(PlainToken::parse(TokenPrefix::Refresh, &bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_hash_is_plain_sha_256_of_the_whole_token() {
        let token = PlainToken::parse(TokenPrefix::Invite, &format!("fhi_{}", "A".repeat(43))).unwrap();
        assert_eq!(token.hash().as_bytes(), Sha256::digest(format!("fhi_{}", "A".repeat(43))).as_slice());
    }

    #[test]
    fn a_token_names_its_tenant_and_is_bound_to_it() {
        let (tenant, other) = (TenantId::new(), TenantId::new());
        let token = PlainToken::generate_for_tenant(TokenPrefix::Refresh, tenant).unwrap();
        let (named, parsed) = PlainToken::parse_for_tenant(TokenPrefix::Refresh, token.expose()).unwrap();
        assert_eq!((named, parsed.hash()), (tenant, token.hash()));
        assert!(PlainToken::parse(TokenPrefix::Refresh, token.expose()).is_err());
        assert!(PlainToken::parse_for_tenant(TokenPrefix::Invite, token.expose()).is_err());

        let simple = |id: TenantId| id.as_uuid().simple().to_string();
        let moved = token.expose().replace(&simple(tenant), &simple(other));
        let (named, parsed) = PlainToken::parse_for_tenant(TokenPrefix::Refresh, &moved).unwrap();
        assert_eq!(named, other);
        assert_ne!(parsed.hash(), token.hash());

        let plain = PlainToken::generate(TokenPrefix::Refresh).unwrap();
        for text in [
            plain.expose().to_owned(),
            token.expose().replace(&simple(tenant), &tenant.to_string()),
            token.expose().to_uppercase().replace("FHR_", "fhr_"),
            format!("{}A", token.expose()),
            token.expose().chars().take(40).collect(),
            String::new(),
        ] {
            assert!(PlainToken::parse_for_tenant(TokenPrefix::Refresh, &text).is_err(), "{text}");
        }
    }

    #[test]
    fn hashes_pass_through_postgres_and_other_lengths_do_not() {
        let hash = PlainToken::generate(TokenPrefix::Invite).unwrap().hash();
        let mut out = BytesMut::new();
        hash.to_sql(&Type::BYTEA, &mut out).unwrap();
        assert_eq!(HashedToken::from_sql(&Type::BYTEA, &out).unwrap(), hash);
        assert!(HashedToken::from_sql(&Type::BYTEA, &out[1..]).is_err());
        assert!(!<HashedToken as ToSql>::accepts(&Type::TEXT));
    }

    #[test]
    fn printing_reveals_nothing() {
        let token = PlainToken::generate(TokenPrefix::Invite).unwrap();
        assert_eq!(format!("{token:?}"), "PlainToken([REDACTED])");
        assert_eq!(format!("{:?}", token.hash()), "HashedToken([REDACTED])");
    }
}
