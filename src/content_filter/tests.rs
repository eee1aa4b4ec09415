use proptest::prelude::*;

use super::*;

#[path = "../../tests/content-filter/marked.rs"]
mod marked;

use marked::{HARMLESS, SENSITIVE, marked, texts};

fn filter(rules: Rules<'_>) -> Arc<ContentFilter> {
    ContentFilter::new(rules).unwrap().unwrap()
}

fn all() -> Arc<ContentFilter> {
    filter(Rules { card_numbers: true, email_addresses: true, phone_numbers: true, patterns: vec![] })
}

fn patterns(patterns: &[(&'static str, &str)]) -> Arc<ContentFilter> {
    let patterns = patterns.iter().map(|(pattern, to)| (*pattern, (*to).to_owned())).collect();
    filter(Rules { patterns, ..Rules::default() })
}

/// What goes out if the text comes in pieces that end at these places.
fn in_pieces(filter: &Arc<ContentFilter>, text: &str, ends: impl IntoIterator<Item = usize>) -> String {
    let mut masking = Masking::new(Arc::clone(filter));
    let (mut out, mut from) = (String::new(), 0);
    for end in ends.into_iter().chain([text.len()]) {
        out.push_str(&masking.push(&text[from..end]));
        from = end;
    }
    out.push_str(&masking.finish());
    out
}

#[test]
fn what_is_sensitive_is_masked_and_nothing_around_it() {
    let filter = all();
    let texts = texts(SENSITIVE);
    assert!(texts.len() >= 200, "{}", texts.len());
    let mut wrong = Vec::new();
    for text in texts {
        let (plain, masked) = marked(&text);
        let out = filter.mask(&plain);
        if out != masked {
            wrong.push(format!("{plain}\n   {out}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_is_harmless_is_not_altered() {
    let filter = all();
    let texts = texts(HARMLESS);
    assert!(texts.len() >= 200, "{}", texts.len());
    let wrong: Vec<_> = texts.iter().map(|text| (text, filter.mask(text))).filter(|(text, out)| *text != out).collect();
    assert!(wrong.is_empty(), "{} wrong:\n{wrong:#?}", wrong.len());
}

#[test]
fn every_cut_gives_the_same() {
    let filter = all();
    for text in texts(SENSITIVE).iter().chain(&texts(HARMLESS)) {
        let (plain, _) = marked(text);
        let whole = filter.mask(&plain);
        let places: Vec<usize> = plain.char_indices().map(|(at, _)| at).collect();
        // One cut anywhere; a character at a time; pieces of three.
        for at in &places {
            assert_eq!(in_pieces(&filter, &plain, [*at]), whole, "{plain} at {at}");
        }
        assert_eq!(in_pieces(&filter, &plain, places.iter().copied()), whole, "{plain}");
        assert_eq!(in_pieces(&filter, &plain, places.iter().copied().step_by(3)), whole, "{plain}");
    }
}

#[test]
fn prose_flows_with_a_word_held_back() {
    let text =
        "The quick brown fox, born in 2019, jumps over 13 lazy dogs - and then (of course) it sleeps. ".repeat(20);
    let mut masking = Masking::new(all());
    let (mut sent, mut most) = (0, 0);
    for (at, c) in text.char_indices() {
        sent += masking.push(&text[at..at + c.len_utf8()]).len();
        most = most.max(at + c.len_utf8() - sent);
    }
    assert!(most <= 8, "{most} bytes were held");
    assert_eq!(sent + masking.finish().len(), text.len());
}

#[test]
fn what_is_held_is_bounded() {
    let patterns = vec![("[a-z0-9]{1,100}!", "x".to_owned())];
    let rules = Rules { card_numbers: true, email_addresses: true, phone_numbers: true, patterns };
    let filter = filter(rules);
    for unit in [
        "1",
        "1 ",
        "12 34-",
        "1234 ",
        "4111 1111 ",
        "a",
        "a.",
        "@",
        "a@",
        "a@b.",
        "+",
        "(",
        "(1",
        "\u{200b}",
        "1\u{200b}",
        "a\u{200b}",
        "DE89 ",
        "D",
        "DE1",
        "0 (",
        "é",
        "1234567890123456789",
        "a@b.com",
        "a-",
        "9.9",
    ] {
        let mut masking = Masking::new(Arc::clone(&filter));
        for _ in 0..2_000 {
            let _ = masking.push(unit);
            assert!(masking.held.len() <= 2_048, "{unit}: {} bytes are held", masking.held.len());
            assert!(masking.spans.len() <= 512, "{unit}: {} spans", masking.spans.len());
        }
        let _ = masking.finish();
    }
}

#[test]
fn an_answer_that_breaks_off_lets_nothing_out() {
    let filter = all();
    for text in texts(SENSITIVE) {
        let (plain, _) = marked(&text);
        // Whatever is cut off, what is left is masked like a text that ends there.
        for (at, _) in plain.char_indices() {
            let mut masking = Masking::new(Arc::clone(&filter));
            let mut out = masking.push(&plain[..at]);
            out.push_str(&masking.finish());
            assert_eq!(out, filter.mask(&plain[..at]));
        }
    }
}

#[test]
fn each_kind_is_masked_only_where_it_is_switched_on() {
    assert_eq!(ContentFilter::new(Rules::default()).map(|filter| filter.is_none()), Ok(true));
    let text = "4111 1111 1111 1111, anna@example.com, +49 30 901820, EMP-123456";
    let cards = filter(Rules { card_numbers: true, ..Rules::default() });
    assert_eq!(cards.mask(text), "[card number], anna@example.com, +49 30 901820, EMP-123456");
    let emails = filter(Rules { email_addresses: true, ..Rules::default() });
    assert_eq!(emails.mask(text), "4111 1111 1111 1111, [e-mail address], +49 30 901820, EMP-123456");
    let phones = filter(Rules { phone_numbers: true, ..Rules::default() });
    assert_eq!(phones.mask(text), "4111 1111 1111 1111, anna@example.com, [phone number], EMP-123456");
    let own = patterns(&[(r"\bEMP-\d{6}\b", "[employee]")]);
    assert_eq!(own.mask(text), "4111 1111 1111 1111, anna@example.com, +49 30 901820, [employee]");
}

#[test]
fn patterns_match_as_they_say() {
    for (pattern, text, masked) in [
        (r"\bEMP-\d{6}\b", "EMP-123456, XEMP-123456, EMP-1234567, EMP-123456", "#, XEMP-123456, EMP-1234567, #"),
        (r"(?i)project (phoenix|tiger)", "Project Phoenix and project tiger; project lion", "# and #; project lion"),
        (r"^secret", "secret: secret", "#: secret"),
        (r"(?m)^x\d$", "x1\nx2 \nx3", "#\nx2 \n#"),
        (r"end$", "end of the end", "end of the #"),
        (r"ü{2}", "aüüb", "a#b"),
        (r"a{1,5}?", "baaab", "b#b"),
        (r"ab|bc", "abc", "#"),
        (r"\d{2}", "1234", "#"),
        ("aa", "a aa aaa", "a # #"),
        (r"[^x]{3}", "日本語x", "#x"),
        (r"(?i)straße", "STRAßE Straße", "# #"),
        (r"\bé\w{1,3}", "été xété", "# xété"),
    ] {
        let filter = patterns(&[(pattern, "#")]);
        assert_eq!(filter.mask(text), masked, "{pattern}");
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        assert_eq!(in_pieces(&filter, text, places), masked, "{pattern}");
    }
}

#[test]
fn what_overlaps_is_masked_once_as_what_begins_first() {
    let filter = patterns(&[("abc", "1"), ("bcd", "2"), ("abcd", "3"), ("de", "4"), ("xy", "5"), ("yx", "6")]);
    for (text, masked) in
        [("abc", "1"), ("bcd", "2"), ("abcd", "3"), ("abcde", "3"), ("abcxy", "15"), ("xyx", "5"), ("bcde", "2")]
    {
        assert_eq!(filter.mask(text), masked, "{text}");
    }
    let rules = Rules { email_addresses: true, patterns: vec![("@example", "#".to_owned())], ..Rules::default() };
    assert_eq!(self::filter(rules).mask("to anna@example.com."), "to [e-mail address].");
}

#[test]
fn a_long_text_is_cut_into_pieces_that_are_all_of_it() {
    for text in ["", "a", &"ä€𝄞x".repeat(2_000), &"x".repeat(4_096)] {
        let pieces: Vec<&str> = pieces(text).collect();
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= PIECE));
    }
}

#[test]
fn scripts_without_spaces_flow_too() {
    for text in ["我们的产品在市场上非常受欢迎".repeat(20), "東京は日本の首都です".repeat(20)] {
        let mut masking = Masking::new(all());
        let (mut sent, mut most) = (0, 0);
        for (at, c) in text.char_indices() {
            sent += masking.push(&text[at..at + c.len_utf8()]).len();
            most = most.max(at + c.len_utf8() - sent);
        }
        assert!(most <= 40, "{most} bytes were held");
    }
}

/// Texts of what finders look at, so that random ones come near to matches.
fn near_misses() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        8 => "[0-9]{1,5}",
        6 => "[ .\\-/()+,:@]",
        2 => "[a-z]{1,6}",
        1 => Just("4111111111111111".to_owned()),
        1 => Just("4111 1111 1111 1111".to_owned()),
        1 => Just("anna@example.com".to_owned()),
        1 => Just("+49 30 ".to_owned()),
        1 => Just("DE89 3704 0044 0532 0130 00".to_owned()),
        1 => Just("tel: ".to_owned()),
        1 => Just("\u{200b}".to_owned()),
        1 => Just("\n".to_owned()),
        1 => any::<char>().prop_map(|c| c.to_string()),
    ];
    proptest::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_make_no_difference(text in near_misses(), sizes in proptest::collection::vec(1_usize..9, 1..20)) {
        let patterns = vec![(r"\b[a-z]{2}\d{1,3}\b", "#".to_owned()), ("[0-9]:.{0,20}z", "?".to_owned())];
        let filter = filter(Rules { card_numbers: true, email_addresses: true, phone_numbers: true, patterns });
        let whole = filter.mask(&text);
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let mut ends = Vec::new();
        let mut at = 0;
        for size in sizes.iter().cycle() {
            at += size;
            let Some(place) = places.get(at) else { break };
            ends.push(*place);
        }
        prop_assert_eq!(in_pieces(&filter, &text, ends), whole);
    }

    #[test]
    fn patterns_find_what_the_library_for_them_finds(text in "[ab\\-1é ]{0,30}", at in 0_usize..6) {
        let pattern = ["a[ab]{1,3}-", r"\b1{2,3}\b", "é.{1,4}1", "(?:ab|a)1", "[^a]a", r"\Ba\b"][at];
        let filter = patterns(&[(pattern, "#")]);
        let regex = regex_automata::nfa::thompson::pikevm::PikeVM::new(pattern).unwrap();
        let found = regex.find_iter(&mut regex.create_cache(), &text).next().is_some();
        prop_assert_eq!(filter.mask(&text) != text, found);
    }

    #[test]
    fn whatever_comes_is_text_and_comes_out(text in any::<String>()) {
        let filter = all();
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        prop_assert_eq!(in_pieces(&filter, &text, places), filter.mask(&text));
    }

    #[test]
    fn a_card_is_found_between_any_words(before in "[a-z ,.:\"'(]{0,10}", after in "[a-z ,.:\"')]{0,10}", prefix in 0_usize..4, digits in "[0-9]{14}") {
        let start = ["4", "51", "34", "6011"][prefix];
        let length = if prefix == 2 { 15 } else { 16 };
        let mut number = format!("{start}{digits}");
        number.truncate(length - 1);
        let sum: u32 = number.bytes().rev().enumerate().map(|(place, digit)| {
            let digit = u32::from(digit - b'0') * if place.is_multiple_of(2) { 2 } else { 1 };
            if digit > 9 { digit - 9 } else { digit }
        }).sum();
        number.push(char::from(b'0' + u8::try_from((10 - sum % 10) % 10).unwrap()));
        let grouped: String = number.as_bytes().chunks(4).map(|four| std::str::from_utf8(four).unwrap()).collect::<Vec<_>>().join(" ");
        for written in [&number, &grouped] {
            let out = all().mask(&format!("{before} {written} {after}"));
            prop_assert!(out.contains("[card number]"), "{}", out);
            prop_assert!(!out.contains(&written[5..12]), "{}", out);
        }
    }
}
