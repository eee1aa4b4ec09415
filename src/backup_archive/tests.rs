use std::io::Cursor;

use proptest::prelude::{any, prop_assert_eq, proptest};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::manifest::KeyBytes;
use super::*;

fn manifest() -> Manifest {
    Manifest {
        about: Summary {
            created_at: chrono::DateTime::UNIX_EPOCH,
            freehold_version: "0".to_owned(),
            tenant_id: uuid::Uuid::from_u128(7),
            slug: "acme".to_owned(),
            name: "Acme".to_owned(),
            plan: "pro".to_owned(),
            template: "general".to_owned(),
            admin_email: "a@acme.example".to_owned(),
            limits: serde_json::json!({}),
            database_mode: "managed".to_owned(),
            schema_version: 3,
            postgres_version: 180_000,
            tables: vec![TableChecksum { table: "t".to_owned(), rows: 2, checksum: "-5".to_owned() }],
        },
        data_keys: vec![ManifestKey { version: 1, key: KeyBytes::new(Zeroizing::new([0xC5; 32])) }],
    }
}

fn secret() -> ArchiveSecret {
    ArchiveSecret::key(&ArchiveSecret::generate_key()).unwrap()
}

fn write(secret: &ArchiveSecret, dump: &[u8]) -> (Vec<u8>, ArchiveKey) {
    let derivation = Derivation::new(secret.kind());
    let key = secret.derive(&derivation).unwrap();
    let mut writer = ArchiveWriter::begin(Vec::new(), &derivation, &key, &manifest()).unwrap();
    for piece in dump.chunks(50_000) {
        writer.write_dump(piece).unwrap();
    }
    let written = writer.finish().unwrap();
    assert_eq!(written.size, written.sink.len() as u64);
    assert_eq!(written.sha256, <[u8; 32]>::from(<sha2::Sha256 as sha2::Digest>::digest(&written.sink)));
    (written.sink, key)
}

fn read(bytes: &[u8], key: &ArchiveKey) -> Result<(Manifest, Vec<u8>), ArchiveError> {
    let mut source = Cursor::new(bytes);
    let header = read_header(&mut source)?;
    let (manifest, mut reader) = ArchiveReader::open(source, header, key)?;
    let mut dump = Vec::new();
    while let Some(piece) = reader.next_piece()? {
        dump.extend_from_slice(&piece);
    }
    Ok((manifest, dump))
}

fn sample(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

#[test]
fn what_was_written_is_read_at_every_length_around_a_chunk() {
    let secret = secret();
    for length in [0, 1, 1000, 64_500, 65_000, 65_535, 65_536, 65_537, 131_072, 300_000] {
        let dump = sample(length);
        let (bytes, key) = write(&secret, &dump);
        let (manifest, found) = read(&bytes, &key).unwrap();
        assert!(found == dump, "{length}");
        assert_eq!(manifest.about.slug, "acme");
        assert_eq!(manifest.data_keys[0].key.expose(), &[0xC5; 32]);
    }
}

#[test]
fn a_passphrase_opens_what_it_sealed_and_no_other_does() {
    let passphrase = |text: &str| ArchiveSecret::Passphrase(SecretString::from(text));
    let (bytes, _) = write(&passphrase("a long passphrase of the owner"), b"dump");
    let header = read_header(&mut Cursor::new(&bytes)).unwrap();
    let right = passphrase("a long passphrase of the owner").derive(header.derivation()).unwrap();
    assert_eq!(read(&bytes, &right).unwrap().1, b"dump");
    let wrong = passphrase("a long passphrase of an other").derive(header.derivation()).unwrap();
    assert!(matches!(read(&bytes, &wrong), Err(ArchiveError::WrongKey)));
    let kind = secret().derive(header.derivation());
    assert!(matches!(kind, Err(ArchiveError::OtherKeyKind(KeyKind::Passphrase))));
}

fn notices_every_changed_bit(bytes: &[u8], key: &ArchiveKey, positions: impl IntoIterator<Item = usize>) {
    for position in positions {
        for bit in 0..8 {
            let mut changed = bytes.to_owned();
            changed[position] ^= 1 << bit;
            assert!(read(&changed, key).is_err(), "byte {position} of {}, bit {bit}", bytes.len());
        }
    }
}

#[test]
fn every_changed_bit_of_an_archive_is_noticed() {
    let (bytes, key) = write(&secret(), &sample(100));
    notices_every_changed_bit(&bytes, &key, 0..bytes.len());
}

#[test]
fn every_changed_bit_around_the_seams_of_chunks_is_noticed() {
    let (bytes, key) = write(&secret(), &sample(140_000));
    // Chunks end with the 16 bytes of their tag. Some bytes before it, and the first ones of the next chunk, or none.
    let ends = [96 + 65_552, 96 + 2 * 65_552, bytes.len()];
    let seams = ends.map(|end| end - 20..(end + 4).min(bytes.len()));
    notices_every_changed_bit(&bytes, &key, seams.into_iter().flatten());
}

#[test]
fn chunks_cannot_be_cut_off_appended_exchanged_or_taken_from_another_file() {
    let secret = secret();
    let (bytes, key) = write(&secret, &sample(300_000));
    let sealed = 65_536 + 16;
    for end in [0, 50, 96, 97, 96 + sealed, 96 + 2 * sealed, bytes.len() - 17, bytes.len() - 1] {
        assert!(read(&bytes[..end], &key).is_err(), "cut at {end}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(read(&longer, &key).is_err());
    longer.extend_from_slice(&bytes[96..]);
    assert!(read(&longer, &key).is_err());
    let mut exchanged = bytes.clone();
    exchanged[96..96 + 2 * sealed].rotate_left(sealed);
    assert!(read(&exchanged, &key).is_err());
    // The same key of the owner, the same content, another writing.
    let (other, other_key) = write(&secret, &sample(300_000));
    let mut mixed = bytes.clone();
    mixed[96 + sealed..96 + 2 * sealed].copy_from_slice(&other[96 + sealed..96 + 2 * sealed]);
    assert!(read(&mixed, &key).is_err());
    assert!(matches!(read(&bytes, &other_key), Err(ArchiveError::WrongKey)));
}

#[test]
fn what_is_no_archive_is_refused_as_such() {
    let key = secret().derive(&Derivation::new(KeyKind::KeyFile)).unwrap();
    for bytes in
        [&b""[..], b"FHBACKUP", &[0; 500], b"PGDMP and more, long enough to hold a whole header, and more, ....."]
    {
        assert!(matches!(read(bytes, &key), Err(ArchiveError::NotAnArchive)));
    }
    let (mut later, key) = write(&secret(), b"");
    later[8] = 2;
    assert!(matches!(read(&later, &key), Err(ArchiveError::UnknownFormat(2))));
}

#[test]
fn a_header_cannot_ask_for_more_than_a_machine_has() {
    let mut bytes = Derivation::new(KeyKind::Passphrase).to_bytes();
    assert!(Derivation::from_bytes(&bytes).is_ok());
    bytes[1] = 0xFF;
    assert!(Derivation::from_bytes(&bytes).is_err());
}

#[test]
fn weak_passphrases_and_keys_are_refused() {
    let check = |text: &str| ArchiveSecret::new_passphrase(SecretString::from(text)).map(drop);
    assert_eq!(check("elevenchars"), Err(PassphraseError::TooShort));
    assert_eq!(check(&"ab".repeat(20)), Err(PassphraseError::Monotonous));
    assert_eq!(check(&"abcdef".repeat(200)), Err(PassphraseError::TooLong));
    assert_eq!(check("a quite good one"), Ok(()));
    for text in ["", "c2hvcnQ=", "not base64!", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="] {
        assert!(ArchiveSecret::key(&SecretString::from(text)).is_err(), "{text}");
    }
}

#[test]
fn printing_reveals_nothing() {
    let generated = ArchiveSecret::generate_key();
    let secret = ArchiveSecret::key(&generated).unwrap();
    let key = secret.derive(&Derivation::new(KeyKind::KeyFile)).unwrap();
    let text = format!("{secret:?} {key:?} {:?}", manifest().data_keys);
    assert!(!text.contains(generated.expose_secret()) && !text.contains("197"), "{text}");
    let shown = serde_json::to_string(&manifest().about).unwrap();
    assert!(!shown.contains("xcXF"), "{shown}");
}

proptest! {
    #[test]
    fn any_dump_comes_back(dump in any::<Vec<u8>>()) {
        let (bytes, key) = write(&secret(), &dump);
        prop_assert_eq!(read(&bytes, &key).unwrap().1, dump);
    }
}
