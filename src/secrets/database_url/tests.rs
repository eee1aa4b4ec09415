//! Tests of database addresses.

use std::net::Ipv6Addr;

use proptest::option;
use proptest::prelude::{Just, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest};
use tokio_postgres::config::Host as DriverHost;

use super::*;

fn url(text: &str) -> DatabaseUrl {
    text.parse().unwrap()
}

#[test]
fn every_part_is_read() {
    let parsed = url("postgres://ann:p%40s%2Fs%25@db.example.com:6543/sales?sslmode=require&sslrootcert=/etc/ca.pem\
         &channel_binding=require&application_name=a%20b+c");
    assert_eq!(parsed.host(), &Host::Tcp("db.example.com".to_owned()));
    assert_eq!(parsed.port(), 6543);
    assert_eq!(parsed.user(), "ann");
    assert_eq!(parsed.password().unwrap().expose_secret(), "p@s/s%");
    assert_eq!(parsed.database(), "sales");
    assert_eq!(parsed.ssl_mode(), SslMode::Require);
    assert_eq!(parsed.ssl_root_cert(), Some(Path::new("/etc/ca.pem")));
    assert_eq!(parsed.application_name(), Some("a b+c"));
    assert_eq!(url(parsed.expose().expose_secret()), parsed);
    assert!(url("postgres://u:p@h/d?sslrootcert=system").ssl_root_cert().is_none());
}

#[test]
fn hosts_away_are_verified_and_local_ones_are_not_encrypted() {
    for (text, mode) in [
        ("postgres://u:p@db.example.com/d", SslMode::VerifyFull),
        ("postgres://u:p@10.0.0.1/d", SslMode::VerifyFull),
        ("postgres://u:p@localhost.example.com/d", SslMode::VerifyFull),
        ("postgres://u:p@[2001:db8::1]/d", SslMode::VerifyFull),
        ("postgres://u:p@localhost/d", SslMode::Disable),
        ("postgres://u:p@127.0.0.1/d", SslMode::Disable),
        ("postgres://u:p@[::1]/d", SslMode::Disable),
        ("postgres://u@/d?host=/run/postgresql", SslMode::Disable),
        ("postgres://u@/d?host=/run/postgresql&sslmode=verify-full", SslMode::Disable),
        ("postgres://u:p@localhost/d?sslmode=verify-full", SslMode::VerifyFull),
        ("postgres://u:p@db.example.com/d?sslmode=disable", SslMode::Disable),
        ("postgres://u:p@db.example.com/d?sslmode=prefer", SslMode::Prefer),
        ("postgres://u:p@db.example.com/d?sslmode=verify-ca", SslMode::VerifyFull),
    ] {
        assert_eq!(url(text).ssl_mode(), mode, "{text}");
    }
}

#[test]
fn sockets_and_ipv6_hosts_are_understood() {
    let socket = url("postgresql://u@:5433/d?host=/var/run/postgresql");
    assert_eq!(socket.host(), &Host::Socket("/var/run/postgresql".into()));
    assert_eq!(socket.port(), 5433);
    assert!(socket.password().is_none());
    assert_eq!(url("postgres://u@%2Fvar%2Frun%2Fpostgresql:5433/d"), socket);
    assert_eq!(url(socket.expose().expose_secret()), socket);
    assert_eq!(socket.to_string(), "postgres://u@:5433/d?host=%2Fvar%2Frun%2Fpostgresql&sslmode=disable");
    assert_eq!(socket.to_sqlx().get_socket(), Some(&PathBuf::from("/var/run/postgresql")));
    assert_eq!(socket.to_tokio_postgres().get_hosts(), [DriverHost::Unix("/var/run/postgresql".into())]);

    let six = url("postgres://u:p@[2001:db8::1]:6000/d");
    assert_eq!(six.to_string(), "postgres://u:***@[2001:db8::1]:6000/d?sslmode=verify-full");
    assert_eq!(six.to_tokio_postgres().get_hosts(), [DriverHost::Tcp("2001:db8::1".to_owned())]);
    assert_eq!(six.to_sqlx().get_host(), "2001:db8::1");
    assert_eq!(url("postgres://u@/d?host=db.example.com").host(), &Host::Tcp("db.example.com".to_owned()));
}

#[test]
fn malformed_addresses_are_refused_for_the_right_reason() {
    use DatabaseUrlError as E;
    for (text, error) in [
        ("", E::Scheme),
        ("mysql://u:p@h/d", E::Scheme),
        ("postgres:u:p@h/d", E::Scheme),
        ("postgres://u:p w@h/d", E::Character),
        ("postgres://u:p\tw@h/d", E::Character),
        ("postgres://u:p#w@h/d", E::Fragment),
        ("postgres://h/d", E::UserInfo),
        ("postgres://u:p@w@h/d", E::UserInfo),
        ("postgres://u:p/w@h/d", E::UserInfo),
        ("postgres://u:p?w@h/d", E::UserInfo),
        ("postgres://u:p@s/w@h/d", E::UserInfo),
        ("postgres://:p@h/d", E::User),
        ("postgres://u:100%@h/d", E::Encoding),
        ("postgres://u:100%zz@h/d", E::Encoding),
        ("postgres://u:%+1@h/d", E::Encoding),
        ("postgres://u:%ff@h/d", E::Encoding),
        ("postgres://u:%00@h/d", E::Nul),
        ("postgres://u:p@/d", E::Host),
        ("postgres://u:p@a,b/d", E::Host),
        ("postgres://u:p@h/d?host=other", E::Host),
        ("postgres://u:p@[::1/d", E::Host),
        ("postgres://u:p@[::1]x/d", E::Host),
        ("postgres://u:p@[nope]/d", E::Host),
        ("postgres://u:p@h:0/d", E::Port),
        ("postgres://u:p@h:65536/d", E::Port),
        ("postgres://u:p@h:+1/d", E::Port),
        ("postgres://u:p@h:x/d", E::Port),
        ("postgres://u:p@h", E::Database),
        ("postgres://u:p@h/", E::Database),
        ("postgres://u:p@h/a/b", E::Database),
        ("postgres://u:p@h/d?sslmode=allow", E::SslMode),
        ("postgres://u:p@h/d?sslmode=", E::SslMode),
        ("postgres://u:p@h/d?channel_binding=1", E::ChannelBinding),
        ("postgres://u:p@h/d?sslmode=disable&sslmode=require", E::Repeated),
        ("postgres://u:p@h/d?password=x", E::Unsupported { name: "password" }),
        ("postgres://u:p@h/d?options=x", E::Unsupported { name: "options" }),
        ("postgres://u:p@h/d?mystery=x", E::UnknownParameter),
    ] {
        assert_eq!(text.parse::<DatabaseUrl>(), Err(error), "{text:?}");
    }
}

#[test]
fn an_empty_password_is_none_and_a_colon_may_stand_in_one() {
    assert!(url("postgres://u:@h/d").password().is_none());
    assert_eq!(url("postgres://u:a:b@h/d").password().unwrap().expose_secret(), "a:b");
    assert_eq!(url("  postgres://u:p@h/d\n").database(), "d");
}

#[test]
fn parts_can_be_replaced() {
    let admin = url("postgres://admin:old@h:1/postgres?sslmode=verify-full");
    let tenant = admin
        .with_database("t/1?")
        .with_credentials("t@1", SecretString::from("#:/@%"))
        .with_application_name("freehold worker");
    assert_eq!(tenant.host(), admin.host());
    assert_eq!(tenant.database(), "t/1?");
    assert_eq!(url(tenant.expose().expose_secret()), tenant);
    assert_eq!(
        tenant.to_string(),
        "postgres://t%401:***@h:1/t%2F1%3F?sslmode=verify-full&application_name=freehold%20worker"
    );
    assert_ne!(tenant, tenant.with_credentials("t@1", SecretString::from("other")));
    assert_ne!(tenant, tenant.with_database("other"));
}

#[test]
fn both_drivers_get_the_same_address() {
    let parsed = url("postgres://ann:p%40ss@db.example.com:6543/sales?sslrootcert=/ca.pem");
    let driver = parsed.to_tokio_postgres();
    assert_eq!(driver.get_hosts(), [DriverHost::Tcp("db.example.com".to_owned())]);
    assert_eq!(driver.get_ports(), [6543]);
    assert_eq!(driver.get_user(), Some("ann"));
    assert_eq!(driver.get_password(), Some(b"p@ss".as_slice()));
    assert_eq!(driver.get_dbname(), Some("sales"));
    assert_eq!(driver.get_ssl_mode(), DriverSslMode::Require);
    assert_eq!(driver.get_application_name(), Some("freehold"));
    let options = parsed.to_sqlx();
    assert_eq!(options.get_host(), "db.example.com");
    assert_eq!(options.get_port(), 6543);
    assert_eq!(options.get_username(), "ann");
    assert_eq!(options.get_database(), Some("sales"));
    assert!(matches!(options.get_ssl_mode(), PgSslMode::VerifyFull));
    assert_eq!(options.get_application_name(), Some("freehold"));
    let required = url("postgres://u:p@h/d?sslmode=require").to_sqlx();
    assert!(matches!(required.get_ssl_mode(), PgSslMode::VerifyFull));
}

#[test]
fn no_misplaced_password_reaches_an_error() {
    for text in [
        "CANARY",
        "postgres://u:CANARY",
        "postgres://u:CANARY%@h/d",
        "postgres://u:x?CANARY=1@h/d",
        "postgres://u:x@h:CANARY/d",
        "postgres://u:x@h/d?CANARY",
        "postgres://u:x@h/d?sslmode=CANARY",
        "postgres://u:x@h/d?password=CANARY",
        "postgres://u:x@CANARY@h/d",
    ] {
        let error = text.parse::<DatabaseUrl>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("CANARY"), "{text}");
    }
}

fn any_url() -> impl Strategy<Value = DatabaseUrl> {
    let host = prop_oneof![
        "[a-z0-9-]{1,12}(\\.[a-z]{2,5}){0,2}".prop_map(|name| parse_host(&name).unwrap()),
        proptest::num::u128::ANY.prop_map(|bits| Host::Tcp(Ipv6Addr::from(bits).to_string())),
        "/[^\\x00]{0,20}".prop_map(|path| Host::Socket(path.into())),
    ];
    let ssl_mode =
        prop_oneof![Just(SslMode::Disable), Just(SslMode::Prefer), Just(SslMode::Require), Just(SslMode::VerifyFull),];
    let text = || "[^\\x00]{1,40}";
    (host, 1..u16::MAX, text(), option::of(text()), text(), ssl_mode, option::of(text()), option::of(text())).prop_map(
        |(host, port, user, password, database, ssl_mode, ca, application_name)| DatabaseUrl {
            ssl_mode: if matches!(host, Host::Socket(_)) { SslMode::Disable } else { ssl_mode },
            host,
            port,
            user,
            password: password.map(SecretString::from),
            database,
            ssl_root_cert: ca.map(PathBuf::from),
            ca_pem: None,
            public_addresses_only: false,
            channel_binding: None,
            application_name,
        },
    )
}

proptest! {
    #[test]
    fn any_address_survives_being_written_and_read(original in any_url()) {
        let read: DatabaseUrl = original.expose().expose_secret().parse().unwrap();
        prop_assert_eq!(&read, &original);
        prop_assert_eq!(
            read.password().map(|p| p.expose_secret().to_owned()),
            original.password().map(|p| p.expose_secret().to_owned())
        );
        prop_assert_eq!(read.user(), original.user());
        prop_assert_eq!(read.database(), original.database());
        prop_assert_eq!(read.host(), original.host());
    }

    #[test]
    fn nothing_panics_on_any_text(text in ".{0,60}", tail in "[u:p@h/?d&=%#\\[\\]0-9]{0,40}") {
        let _ = text.parse::<DatabaseUrl>();
        let _ = format!("postgres://{tail}").parse::<DatabaseUrl>();
    }

    #[test]
    fn a_password_is_never_printed(password in "CANARY[^\\x00]{0,20}") {
        let url = url("postgres://u@h/d").with_credentials("u", SecretString::from(password));
        let shown = format!("{url} {url:?} {url:#?} {:?}", url.to_tokio_postgres());
        prop_assert!(!shown.contains("CANARY"), "{}", shown);
        prop_assert!(shown.contains("***"));
    }

    /// However a password was pasted in unencoded, it is either taken whole or the address is refused.
    #[test]
    fn a_raw_password_is_whole_or_refused(password in "[ -~]{1,20}") {
        let text = format!("postgres://u:{password}@db.example.com/d");
        if let Ok(url) = text.parse::<DatabaseUrl>() {
            prop_assert_eq!(url.host(), &Host::Tcp("db.example.com".to_owned()));
            prop_assert_eq!(url.database(), "d");
            prop_assert_eq!(url.password().map(|p| p.expose_secret().to_owned()), decode(&password).ok());
        }
    }
}
