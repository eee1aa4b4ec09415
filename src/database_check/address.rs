//! What can be said of a database's address before anything is connected to.

use secrecy::SecretString;

use super::{Finding, Purpose, problem, warning};
use crate::secrets::{DatabaseUrl, DatabaseUrlError, Host, SslMode, TlsError, connector};

/// Who gave an address: it decides where the address may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrlOrigin {
    /// The owner, who may reach everything that the server does.
    Owner,
    /// A client, who must not make the server knock on inner doors: public addresses only.
    Client,
}

/// Reads an address that somebody gave, and binds it to what its giver may reach. `ca` are certificates in PEM format.
///
/// # Errors
/// With the finding that says what is wrong; it never repeats the address.
pub fn parse(text: &SecretString, ca: Option<&str>, origin: UrlOrigin) -> Result<DatabaseUrl, Finding> {
    let url = DatabaseUrl::parse(text).map_err(refused)?;
    let url = match ca.map(str::trim).filter(|ca| !ca.is_empty()) {
        Some(ca) => url.with_ca_pem(ca),
        None => url,
    };
    if url.ca_pem().is_some() && url.ssl_mode() == SslMode::Disable {
        return Err(problem(
            "ca_without_encryption",
            "an authority is given, but the address asks for no encryption, so that nothing would be checked with it",
            "write sslmode=verify-full into the address",
        ));
    }
    // With a file in the address too, that is what gets refused; the file must not be opened to find out.
    if url.ca_pem().is_some()
        && url.ssl_root_cert().is_none()
        && let Err(error) = connector(&url)
    {
        return Err(unusable_certificates(&error));
    }
    Ok(match origin {
        UrlOrigin::Owner => url,
        UrlOrigin::Client => url.with_public_addresses_only(true),
    })
}

/// What is wrong with an address that is for public internet addresses only and does not demand the server's
/// certificate. A name may lead elsewhere the moment after it was judged; only the certificate then keeps the server from
/// talking to something on an inner network. Local hosts are left out: they are refused for where they are.
#[must_use]
pub fn encryption_required(url: &DatabaseUrl) -> Option<Finding> {
    let demands = matches!(url.ssl_mode(), SslMode::VerifyFull | SslMode::Require);
    (url.public_addresses_only() && !demands && !url.host().is_local()).then(|| {
        problem(
            "encryption_required",
            format!(
                "sslmode={}: a client's database is connected to only with TLS, and a certificate that is checked",
                url.ssl_mode().as_str()
            ),
            "use sslmode=verify-full, and give the authority's certificate if it is not a public one",
        )
    })
}

pub(super) fn unusable_certificates(error: &TlsError) -> Finding {
    match error {
        TlsError::RootCertFile { .. } | TlsError::NoRootCert { .. } => problem(
            "certificate_file_unusable",
            "the file that sslrootcert names cannot be read by the server, or holds no certificate in PEM format",
            "put the authority's certificate there in PEM format, readable by the server's account",
        ),
        TlsError::CaPem(_) | TlsError::NoCaPem | TlsError::Rustls(_) => problem(
            "ca_unusable",
            "the given authority is not a certificate in PEM format",
            "give the authority's certificate as it is, from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----",
        ),
    }
}

fn refused(error: DatabaseUrlError) -> Finding {
    let (code, remedy) = match error {
        DatabaseUrlError::Scheme => ("url_scheme", "write postgres://user:password@host:5432/database"),
        DatabaseUrlError::User => ("url_user_missing", "write the role's name and password before the @"),
        DatabaseUrlError::Database => ("url_database_missing", "end the address with / and the database's name"),
        DatabaseUrlError::Host => ("url_host", "write one host name or address behind the @"),
        DatabaseUrlError::Port => ("url_port", "write the port as a number behind the host: host:5432"),
        DatabaseUrlError::SslMode | DatabaseUrlError::ChannelBinding => {
            ("url_sslmode", "leave it out: sslmode=verify-full is what is used then")
        }
        DatabaseUrlError::Unsupported { .. } | DatabaseUrlError::UnknownParameter | DatabaseUrlError::Repeated => {
            ("url_parameter", "remove the parameter from the address")
        }
        DatabaseUrlError::Character
        | DatabaseUrlError::Fragment
        | DatabaseUrlError::UserInfo
        | DatabaseUrlError::Encoding
        | DatabaseUrlError::Nul
        | DatabaseUrlError::Addresses => {
            ("url_malformed", "percent-encode what is special in user name and password: @ is %40, / is %2F, # is %23")
        }
    };
    problem(code, error.to_string(), remedy)
}

/// What an address says of itself.
pub(super) fn judge(url: &DatabaseUrl, purpose: Purpose) -> Vec<Finding> {
    let mut findings = Vec::new();
    let local = url.host().is_local();
    if purpose == Purpose::Tenant {
        if matches!(url.host(), Host::Socket(_)) {
            findings.push(problem(
                "url_socket",
                "the address names a socket on the server's own machine",
                "give the host name under which the database is reached over the network",
            ));
        }
        if url.ssl_root_cert().is_some() {
            findings.push(problem(
                "url_certificate_file",
                "sslrootcert names a file, and the server reads no files of a client's choosing",
                "give the authority's certificate beside the address: `ca`, or --database-ca-file",
            ));
        }
        if url.password().is_none() {
            findings.push(problem(
                "url_password_missing",
                "the address holds no password",
                "write the role's password behind its name: postgres://user:password@host/database",
            ));
        }
    }
    match url.ssl_mode() {
        SslMode::VerifyFull | SslMode::Require => {}
        // Nothing on the way can be listened to.
        _ if local && purpose != Purpose::Tenant => {}
        weaker => findings.push(warning(
            "encryption_not_demanded",
            format!(
                "sslmode={}: the connection is not certain to be encrypted, and whoever is on its way can read the \
                 password and the conversations, or be taken for the server",
                weaker.as_str()
            ),
            "use sslmode=verify-full, and give the authority's certificate if it is not a public one",
        )),
    }
    if matches!(url.password(), Some(password) if is_obvious(password, url)) {
        findings.push(warning(
            "password_obvious",
            "the password is among the first that anybody would try",
            "set a long random one: ALTER ROLE … PASSWORD, for example from `openssl rand -base64 24`",
        ));
    }
    findings
}

/// Whether a password is one that guessing begins with.
fn is_obvious(password: &SecretString, url: &DatabaseUrl) -> bool {
    use secrecy::ExposeSecret as _;
    const FIRST_TRIED: &[&str] = &[
        "admin",
        "administrator",
        "changeme",
        "change-me",
        "default",
        "freehold",
        "letmein",
        "master",
        "passw0rd",
        "password",
        "pass",
        "postgres",
        "postgresql",
        "qwerty",
        "root",
        "secret",
        "test",
        "supabase",
        "12345678",
        "123456789",
        "1234567890",
    ];
    let text = password.expose_secret();
    let plain = text.to_lowercase();
    text.chars().count() < 8
        || FIRST_TRIED.contains(&plain.as_str())
        || FIRST_TRIED.contains(&plain.trim_end_matches(|c: char| c.is_ascii_digit() || c == '!'))
        || plain == url.user().to_lowercase()
        || plain == url.database().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(text: &str, purpose: Purpose) -> Vec<String> {
        let url: DatabaseUrl = text.parse().unwrap();
        judge(&url, purpose).into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn what_an_address_lacks_is_named() {
        for (text, code) in [
            ("mysql://u:p@h/d", "url_scheme"),
            ("postgres://:p@h/d", "url_user_missing"),
            ("postgres://u:p@h", "url_database_missing"),
            ("postgres://u:p@h/", "url_database_missing"),
            ("postgres://u:p@h:x/d", "url_port"),
            ("postgres://u:p@/d", "url_host"),
            ("postgres://u:p@h/d?sslmode=no", "url_sslmode"),
            ("postgres://u:p@h/d?pgbouncer=true", "url_parameter"),
            ("postgres://u:CANARY@@h/d", "url_malformed"),
        ] {
            let finding = parse(&SecretString::from(text), None, UrlOrigin::Owner).unwrap_err();
            assert_eq!(finding.code, code, "{text}");
            assert!(!finding.message.contains("CANARY") && !finding.remedy.is_empty());
        }
        assert_eq!(codes("postgres://u@h/d", Purpose::Tenant), ["url_password_missing"]);
        assert_eq!(codes("postgres://u@h/d", Purpose::Cluster), Vec::<String>::new());
    }

    #[test]
    fn a_tenants_address_names_nothing_on_the_servers_machine() {
        let socket = "postgres://u:long-and-random@/d?host=/run/postgresql";
        assert_eq!(codes(socket, Purpose::Tenant), ["url_socket", "encryption_not_demanded"]);
        let file = "postgres://u:long-and-random@h/d?sslrootcert=/etc/passwd";
        assert_eq!(codes(file, Purpose::Tenant), ["url_certificate_file"]);
        assert_eq!(codes(file, Purpose::Platform), Vec::<String>::new());
    }

    #[test]
    fn obvious_passwords_are_noticed() {
        for password in ["postgres", "Password1!", "short", "tenant_role", "s3cret-1234", "correct-horse-battery"] {
            let text = format!("postgres://tenant_role:{password}@h/d");
            let noticed = codes(&text, Purpose::Platform) == ["password_obvious"];
            assert_eq!(noticed, !["s3cret-1234", "correct-horse-battery"].contains(&password), "{password}");
        }
    }

    #[test]
    fn an_authority_has_to_be_one() {
        let url = SecretString::from("postgres://u:p@h/d");
        assert_eq!(parse(&url, Some("no certificate"), UrlOrigin::Owner).unwrap_err().code, "ca_unusable");
        let plain = SecretString::from("postgres://u:p@h/d?sslmode=disable");
        assert_eq!(parse(&plain, Some("x"), UrlOrigin::Owner).unwrap_err().code, "ca_without_encryption");
        assert!(parse(&url, Some("  "), UrlOrigin::Client).unwrap().public_addresses_only());
    }

    #[test]
    fn what_is_bound_to_public_addresses_demands_a_certificate() {
        for (mode, refused) in [("disable", true), ("prefer", true), ("require", false), ("verify-full", false)] {
            let text = SecretString::from(format!("postgres://u:p@db.example/d?sslmode={mode}"));
            let client = parse(&text, None, UrlOrigin::Client).unwrap();
            assert_eq!(
                encryption_required(&client).map(|finding| finding.code == "encryption_required"),
                refused.then_some(true),
                "{mode}"
            );
            let owner = parse(&text, None, UrlOrigin::Owner).unwrap();
            assert_eq!(encryption_required(&owner).map(|finding| finding.code), None, "{mode}");
        }
    }
}
