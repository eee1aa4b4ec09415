//! The access token of a tenant's user: a JWT signed with a key of that tenant.
//!
//! Everything here is computed from its arguments. Whose key a token names is looked up in between: [`key_id`] says
//! which key a token claims, [`verify`] whether that key signed it.

use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, Header, Validation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::roles::Permissions;
use crate::api::tenant::Role;
use crate::ids::{RefreshFamilyId, SigningKeyId, TenantId, UserId};
use crate::tenant_db::SigningKey;

/// The one algorithm. A token that names another is not looked at further: what a token says of itself must not
/// choose how it is checked.
const ALGORITHM: Algorithm = Algorithm::HS256;
const ISSUER: &str = "freehold";
const AUDIENCE: &str = "freehold:tenant";
/// Longer than any token that is issued here, and short enough to be parsed for anybody.
const LONGEST: usize = 4096;

/// What a token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Claims {
    iss: String,
    aud: String,
    /// The user.
    pub(super) sub: UserId,
    /// The tenant, which must be the one that owns the key.
    pub(super) tenant: TenantId,
    /// The chain of refresh tokens that this token belongs to.
    pub(super) fam: RefreshFamilyId,
    pub(super) role: Role,
    pub(super) permissions: Permissions,
    iat: i64,
    exp: i64,
    jti: Uuid,
}

/// Whom a token is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    pub(super) user_id: UserId,
    pub(super) tenant_id: TenantId,
    pub(super) family_id: RefreshFamilyId,
    pub(super) role: Role,
}

impl Claims {
    /// The claims of a new token.
    pub(super) fn new(grant: &Grant, now: DateTime<Utc>, expires_at: DateTime<Utc>) -> Self {
        Self {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: grant.user_id,
            tenant: grant.tenant_id,
            fam: grant.family_id,
            role: grant.role,
            permissions: grant.role.permissions(),
            iat: now.timestamp(),
            exp: expires_at.timestamp(),
            jti: Uuid::now_v7(),
        }
    }
}

/// The token proves nothing. Why is nobody's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InvalidToken;

impl From<jsonwebtoken::errors::Error> for InvalidToken {
    fn from(_: jsonwebtoken::errors::Error) -> Self {
        Self
    }
}

/// Signs a token.
pub(super) fn sign(claims: &Claims, key: &SigningKey) -> Result<String, jsonwebtoken::errors::Error> {
    let header = Header { kid: Some(key.id.to_string()), ..Header::new(ALGORITHM) };
    jsonwebtoken::encode(&header, claims, &key.encoding)
}

/// The key that a token claims to be signed with.
pub(super) fn key_id(token: &str) -> Result<SigningKeyId, InvalidToken> {
    if token.len() > LONGEST {
        return Err(InvalidToken);
    }
    let header = jsonwebtoken::decode_header(token)?;
    if header.alg != ALGORITHM {
        return Err(InvalidToken);
    }
    header.kid.and_then(|kid| kid.parse().ok()).ok_or(InvalidToken)
}

/// What a token says, if `key`, which belongs to `tenant`, signed it and it is in force.
pub(super) fn verify(
    token: &str,
    key: &SigningKey,
    tenant: TenantId,
    now: DateTime<Utc>,
) -> Result<Claims, InvalidToken> {
    let mut validation = Validation::new(ALGORITHM);
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[AUDIENCE]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    // The library asks the wall clock. Time is checked below, without leeway: whoever signs also checks.
    validation.validate_exp = false;
    let claims = jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation)?.claims;
    if claims.tenant != tenant || claims.exp <= now.timestamp() {
        return Err(InvalidToken);
    }
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use chrono::TimeDelta;
    use jsonwebtoken::{DecodingKey, EncodingKey};
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn key_of(secret: &[u8]) -> SigningKey {
        SigningKey {
            id: SigningKeyId::new(),
            encoding: EncodingKey::from_secret(secret),
            decoding: DecodingKey::from_secret(secret),
            retired: false,
        }
    }

    struct Fixture {
        key: SigningKey,
        grant: Grant,
        now: DateTime<Utc>,
    }

    impl Fixture {
        fn new() -> Self {
            let grant = Grant {
                user_id: UserId::new(),
                tenant_id: TenantId::new(),
                family_id: RefreshFamilyId::new(),
                role: Role::Manager,
            };
            Self { key: key_of(SECRET), grant, now: DateTime::UNIX_EPOCH + TimeDelta::days(20_000) }
        }

        fn claims(&self) -> Claims {
            Claims::new(&self.grant, self.now, self.now + TimeDelta::minutes(15))
        }

        fn token(&self) -> String {
            sign(&self.claims(), &self.key).unwrap()
        }

        /// A token with these claims changed, properly signed.
        fn token_with(&self, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> String {
            let mut claims = serde_json::to_value(self.claims()).unwrap();
            change(claims.as_object_mut().unwrap());
            let header = Header { kid: Some(self.key.id.to_string()), ..Header::new(ALGORITHM) };
            jsonwebtoken::encode(&header, &claims, &self.key.encoding).unwrap()
        }

        fn verify(&self, token: &str) -> Result<Claims, InvalidToken> {
            // As a caller does: the header first.
            key_id(token).and_then(|_| verify(token, &self.key, self.grant.tenant_id, self.now))
        }

        fn refuses(&self, token: &str) -> bool {
            self.verify(token).is_err()
        }
    }

    fn encode(value: &Value) -> String {
        URL_SAFE_NO_PAD.encode(value.to_string())
    }

    /// The token with another header, its payload and signature kept.
    fn with_header(token: &str, header: &Value) -> String {
        let (_, rest) = token.split_once('.').unwrap();
        format!("{}.{rest}", encode(header))
    }

    #[test]
    fn a_token_carries_who_where_and_what() {
        let fixture = Fixture::new();
        let token = fixture.token();
        assert_eq!(key_id(&token), Ok(fixture.key.id));
        let claims = fixture.verify(&token).unwrap();
        assert_eq!((claims.sub, claims.tenant), (fixture.grant.user_id, fixture.grant.tenant_id));
        assert_eq!((claims.fam, claims.role), (fixture.grant.family_id, Role::Manager));
        assert!(claims.permissions.allow("users:read") && !claims.permissions.allow("config:write"));
    }

    #[test]
    fn the_payload_holds_the_documented_claims() {
        let fixture = Fixture::new();
        let claims = serde_json::to_value(fixture.claims()).unwrap();
        assert_eq!(claims["iss"], "freehold");
        assert_eq!(claims["aud"], "freehold:tenant");
        assert_eq!(claims["role"], "manager");
        assert_eq!(claims["permissions"][0], "users:*");
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 900);
        assert!(claims["jti"].is_string());
    }

    #[test]
    fn time_comes_from_the_argument_and_has_no_leeway() {
        let fixture = Fixture::new();
        let token = fixture.token();
        let at = |now| verify(&token, &fixture.key, fixture.grant.tenant_id, now);
        assert!(at(fixture.now + TimeDelta::seconds(899)).is_ok());
        assert!(at(fixture.now + TimeDelta::seconds(900)).is_err());
        assert!(at(fixture.now + TimeDelta::days(9_000)).is_err());
    }

    #[test]
    fn a_token_without_a_signature_is_refused() {
        let fixture = Fixture::new();
        let token = fixture.token();
        let (unsigned, _) = token.rsplit_once('.').unwrap();
        assert!(fixture.refuses(unsigned));
        assert!(fixture.refuses(&format!("{unsigned}.")));
        for alg in ["none", "None", "NONE", "nOnE", ""] {
            let header = json!({ "typ": "JWT", "alg": alg, "kid": fixture.key.id });
            let forged = with_header(unsigned, &header);
            assert!(fixture.refuses(&format!("{forged}.")), "{alg}");
            assert!(fixture.refuses(&with_header(&token, &header)), "{alg}");
        }
    }

    #[test]
    fn another_algorithm_is_refused_even_with_the_right_key() {
        let fixture = Fixture::new();
        let claims = fixture.claims();
        for alg in [Algorithm::HS384, Algorithm::HS512] {
            let header = Header { kid: Some(fixture.key.id.to_string()), ..Header::new(alg) };
            let token = jsonwebtoken::encode(&header, &claims, &fixture.key.encoding).unwrap();
            assert!(key_id(&token).is_err(), "{alg:?}");
            assert!(verify(&token, &fixture.key, fixture.grant.tenant_id, fixture.now).is_err(), "{alg:?}");
        }
        for alg in ["RS256", "PS256", "ES256", "EdDSA", "hs256"] {
            let token = with_header(&fixture.token(), &json!({ "typ": "JWT", "alg": alg, "kid": fixture.key.id }));
            assert!(key_id(&token).is_err(), "{alg}");
            assert!(verify(&token, &fixture.key, fixture.grant.tenant_id, fixture.now).is_err(), "{alg}");
        }
    }

    #[test]
    fn a_key_in_the_header_is_not_used() {
        let fixture = Fixture::new();
        let own = key_of(b"a secret that the attacker chose!");
        let jwk =
            json!({ "kty": "oct", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode("a secret that the attacker chose!") });
        let header =
            json!({ "typ": "JWT", "alg": "HS256", "kid": fixture.key.id, "jwk": jwk, "jku": "https://evil.example" });
        let message = format!("{}.{}", encode(&header), encode(&serde_json::to_value(fixture.claims()).unwrap()));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &own.encoding, ALGORITHM).unwrap();
        assert!(fixture.refuses(&format!("{message}.{signature}")));
    }

    #[test]
    fn a_key_id_that_is_none_is_refused() {
        let fixture = Fixture::new();
        for kid in [json!(null), json!(""), json!("../../etc/passwd"), json!("' OR 1=1 --"), json!(7)] {
            let header = json!({ "typ": "JWT", "alg": "HS256", "kid": kid });
            assert!(key_id(&with_header(&fixture.token(), &header)).is_err(), "{kid}");
        }
        let forged = json!({ "typ": "JWT", "alg": "HS256", "kid": SigningKeyId::new() });
        assert!(fixture.refuses(&with_header(&fixture.token(), &forged)), "the header is part of what is signed");
    }

    #[test]
    fn another_tenants_key_proves_nothing() {
        let (fixture, other) = (Fixture::new(), Fixture::new());
        let foreign = Fixture { key: key_of(b"another 32 bytes of random secret"), ..Fixture::new() };
        // Signed by another tenant, for itself or for this one.
        assert!(verify(&foreign.token(), &fixture.key, fixture.grant.tenant_id, fixture.now).is_err());
        let crafted = sign(&fixture.claims(), &foreign.key).unwrap();
        assert!(verify(&crafted, &fixture.key, fixture.grant.tenant_id, fixture.now).is_err());
        // Even a right signature does not open another tenant: the claim must be the key's owner.
        assert!(verify(&fixture.token(), &fixture.key, other.grant.tenant_id, fixture.now).is_err());
        assert!(fixture.refuses(&fixture.token_with(|claims| {
            claims.insert("tenant".to_owned(), json!(other.grant.tenant_id));
        })));
    }

    #[test]
    fn every_claim_is_needed_and_right() {
        let fixture = Fixture::new();
        for name in ["iss", "aud", "sub", "tenant", "fam", "role", "permissions", "iat", "exp", "jti"] {
            let token = fixture.token_with(|claims| drop(claims.remove(name)));
            assert!(fixture.refuses(&token), "without {name}");
        }
        for (name, value) in [
            ("iss", json!("somebody")),
            ("aud", json!("freehold:platform")),
            ("aud", json!(["freehold:platform"])),
            ("exp", json!(0)),
            ("exp", json!("tomorrow")),
            ("role", json!("root")),
            ("sub", json!("not an id")),
        ] {
            let token = fixture.token_with(|claims| drop(claims.insert(name.to_owned(), value.clone())));
            assert!(fixture.refuses(&token), "{name}: {value}");
        }
    }

    #[test]
    fn a_changed_payload_or_signature_is_refused() {
        let fixture = Fixture::new();
        let token = fixture.token();
        let mut claims = serde_json::to_value(fixture.claims()).unwrap();
        claims["role"] = json!("admin");
        claims["permissions"] = json!(["*"]);
        let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
        assert!(fixture.refuses(&format!("{header}.{}.{signature}", encode(&claims))));
        let other = if signature.starts_with('A') { "B" } else { "A" };
        assert!(fixture.refuses(&format!("{header}.{payload}.{other}{}", &signature[1..])));
        assert!(fixture.refuses(&format!("{header}.{payload}.{}", &signature[..signature.len() - 2])));
        assert!(fixture.refuses(&format!("{token}.{signature}")));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let fixture = Fixture::new();
        for text in ["", ".", "..", "a.b.c", "e30.e30.e30", &"x".repeat(5000), "\0"] {
            assert!(fixture.refuses(text), "{text:.20}");
        }
        let long = fixture.token_with(|claims| drop(claims.insert("x".to_owned(), json!("y".repeat(4096)))));
        assert!(fixture.refuses(&long));
    }
}
