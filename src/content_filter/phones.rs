//! Which groups of digits are a telephone number.
//!
//! A `+` or `00` before a country's code says so. Without it a number is one of the forms in which countries write
//! theirs, and digits in one piece, or in groups like those of a large amount, are one only behind a word that says so.

use super::numbers::{Group, Joint};

/// The shortest and longest number of some countries, after the country's code. For others 6 to 12.
const COUNTRIES: &[(&str, usize, usize)] = &[
    ("1", 10, 10),
    ("7", 10, 10),
    ("30", 10, 10),
    ("31", 9, 9),
    ("32", 8, 9),
    ("33", 9, 9),
    ("34", 9, 9),
    ("36", 8, 9),
    ("39", 6, 11),
    ("41", 9, 9),
    ("44", 9, 10),
    ("45", 8, 8),
    ("46", 7, 10),
    ("47", 8, 8),
    ("48", 9, 9),
    ("49", 5, 12),
    ("52", 10, 11),
    ("54", 10, 11),
    ("55", 10, 11),
    ("61", 9, 9),
    ("64", 8, 10),
    ("65", 8, 8),
    ("81", 9, 10),
    ("82", 8, 10),
    ("86", 10, 11),
    ("90", 10, 10),
    ("91", 10, 10),
    ("351", 9, 9),
    ("353", 7, 9),
    ("358", 5, 11),
    ("420", 9, 9),
    ("421", 9, 9),
    ("852", 8, 8),
    ("886", 8, 9),
    ("971", 8, 9),
    ("972", 8, 9),
];

/// The countries' codes with one and two digits; all others have three.
const SHORT_CODES: &[&str] = &[
    "1", "7", "20", "27", "30", "31", "32", "33", "34", "36", "39", "40", "41", "43", "44", "45", "46", "47", "48",
    "49", "51", "52", "53", "54", "55", "56", "57", "58", "60", "61", "62", "63", "64", "65", "66", "81", "82", "84",
    "86", "90", "91", "92", "93", "94", "95", "98",
];
/// What the codes with three digits begin with.
const LONG_CODES: &[&str] = &[
    "21", "22", "23", "24", "25", "26", "29", "35", "37", "38", "42", "50", "59", "67", "68", "69", "80", "85", "87",
    "88", "96", "97", "99",
];

/// What mobile numbers of twelve digits begin with, in Germany.
const LONGER: [&str; 3] = ["015", "016", "017"];

/// What the digits of an amount end in where no telephone number does: millions.
const MILLIONS: &str = "000000";

/// What stands around a number says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hint {
    /// It is one.
    Telephone,
    /// It is one, unless it is written like an amount: people are called and reached, and so are millions.
    Perhaps,
    /// It is a number of something else.
    Other,
    /// It is part of a word, a path, a price or a longer number.
    Attached,
    None,
}

/// How many of the groups, from the first one, are a telephone number. None if it does not begin with one. `in_row`: it is
/// one of a row of numbers.
pub(super) fn length(groups: &[Group], hint: Hint, in_row: bool) -> Option<usize> {
    // What is far apart is of two columns, or else only a card's number.
    let near = groups.iter().skip(1).position(|group| group.joint == Joint::Far).map_or(groups.len(), |at| at + 1);
    let groups = groups.get(..near)?;
    form(groups, hint, in_row).filter(|count| {
        let digits: String = groups.iter().take(*count).map(|group| group.digits.as_str()).collect();
        !digits.ends_with(MILLIONS)
    })
}

fn form(groups: &[Group], hint: Hint, in_row: bool) -> Option<usize> {
    let first = groups.first()?;
    let all: String = groups.iter().map(|group| group.digits.as_str()).collect();
    let hint = match hint {
        Hint::Perhaps if is_amount(groups) && (all.ends_with("000") || first.digits.len() < 3) => Hint::None,
        Hint::Perhaps => Hint::Telephone,
        hint => hint,
    };
    if first.plus {
        return international(groups, 0, hint);
    }
    if hint == Hint::Telephone {
        return match is_date(groups) || is_iso_date(groups) || groups.iter().all(is_year) {
            true => None,
            false => international(groups, 2, hint).or_else(|| longest(groups, 7, 15)),
        };
    }
    if hint != Hint::None || in_row || all.bytes().all(|digit| digit <= b'1') {
        return None;
    }
    if first.digits.starts_with("00") {
        return international(groups, 2, hint);
    }
    if first.digits == "011" && groups.len() > 2 {
        return international(groups, 3, hint);
    }
    if first.digits.starts_with('0') {
        return domestic(groups);
    }
    written_form(groups)
}

/// `skipped`: the digits before the country's code.
fn international(groups: &[Group], skipped: usize, hint: Hint) -> Option<usize> {
    if hint == Hint::Attached {
        return None;
    }
    let all: String = groups.iter().map(|group| group.digits.as_str()).collect();
    if skipped == 2 && !all.starts_with("00") {
        return None;
    }
    let rest = all.get(skipped..)?;
    let short = SHORT_CODES.iter().find(|code| rest.starts_with(**code)).map(|code| code.len());
    let code = match short {
        Some(length) => length,
        None if LONG_CODES.iter().any(|code| rest.starts_with(code)) => 3,
        None => return None,
    };
    let country = rest.get(..code)?;
    let (fewest, most) =
        COUNTRIES.iter().find(|(code, ..)| *code == country).map_or((6, 12), |(_, fewest, most)| (*fewest, *most));
    // The zero of `+49 (0)30` is not dialled.
    let zero = usize::from(groups.iter().skip(1).any(|group| group.digits == "0" && group.joint == Joint::Opening));
    let before = skipped + code + zero;
    longest(groups, before + fewest, before + most).or_else(|| {
        // A domestic zero that should not be there, or an extension.
        let whole = longest(groups, skipped + 8, skipped + 15)?;
        (skipped == 0 && !is_amount(groups)).then_some(whole)
    })
}

/// The most groups that have so many digits together and are free behind.
fn longest(groups: &[Group], fewest: usize, most: usize) -> Option<usize> {
    let mut digits = 0;
    let mut found = None;
    for (at, group) in groups.iter().enumerate() {
        digits += group.digits.len();
        if (fewest..=most).contains(&digits) && !group.attached_behind {
            found = Some(at + 1);
        }
    }
    found
}

/// Numbers with the zero that is dialled within a country.
fn domestic(groups: &[Group]) -> Option<usize> {
    let sizes: Vec<usize> = groups.iter().map(|group| group.digits.len()).collect();
    let first = groups.first()?;
    // From one postcode to another.
    let is_range = groups.get(1).is_some_and(|next| {
        next.digits.starts_with('0') && next.digits.len() == first.digits.len() && first.digits.len() > 4
    });
    if first.digits.len() < 2 || is_date(groups) || is_range || groups.iter().all(is_time) {
        return None;
    }
    match sizes.as_slice() {
        // In one piece: of a length that many countries have, and not the digits in order.
        [only] => {
            let usual =
                (10..=11).contains(only) || (*only == 12 && LONGER.iter().any(|code| first.digits.starts_with(code)));
            (usual && !first.digits.starts_with("01234") && !first.attached_behind).then_some(1)
        }
        // Pairs are five in France, and more of them anything.
        [2, 2, 2, 2, 2, rest @ ..] => longest(groups, 10, 10).filter(|_| rest.first() != Some(&2)),
        _ => longest(groups, 9, 12).filter(|count| *count > 1 || first.digits.len() >= 10),
    }
}

/// Forms in which countries write numbers without any zero.
fn written_form(groups: &[Group]) -> Option<usize> {
    let first = groups.first()?;
    let begins = |group: usize, any_of: &str| {
        groups.get(group).and_then(|group| group.digits.chars().next()).is_some_and(|digit| any_of.contains(digit))
    };
    let is_form = |sizes: &[usize]| {
        let last = sizes.len().checked_sub(1).and_then(|last| groups.get(last));
        let complete = last.is_some_and(|last| !last.attached_behind);
        let fits =
            groups.len() >= sizes.len() && groups.iter().zip(sizes).all(|(group, size)| group.digits.len() == *size);
        // A longer row of numbers is a table's.
        let ends = groups.get(sizes.len()).is_none_or(|next| next.digits.len() != *sizes.last().unwrap_or(&0));
        (complete && fits && ends).then_some(sizes.len())
    };
    let enclosed = first.opened && groups.get(1).is_some_and(|group| group.joint == Joint::Closing);
    let joined = |group: usize, by: &[Joint]| groups.get(group).is_some_and(|group| by.contains(&group.joint));
    // Sizes, prices and rows of a table are as long as parts of telephone numbers, and round.
    let is_round = !enclosed && groups.len() > 2 && groups.iter().all(|group| group.digits.ends_with('0'));
    if is_date(groups) || groups.iter().skip(1).all(is_year) || is_round {
        return None;
    }
    // North America, Italy, Colombia, Greece. With spaces alone they are any three numbers.
    let mut found = None;
    if (enclosed || joined(2, &[Joint::Dash, Joint::Dot]))
        && !joined(1, &[Joint::Slash])
        && (!begins(0, "1") || !begins(1, "1"))
    {
        found = is_form(&[3, 3, 4]);
    }
    if first.digits == "1" && found.is_none() {
        found = is_form(&[1, 3, 3, 4]);
    }
    // Russia, Kazakhstan.
    if first.digits == "8" && found.is_none() {
        found = is_form(&[1, 3, 3, 2, 2]).or_else(|| is_form(&[1, 3, 3, 4]));
    }
    // Turkey, Switzerland and Russia without the first digit; Spain; Poland and Spain.
    found =
        found.or_else(|| is_form(&[3, 3, 2, 2])).or_else(|| is_form(&[3, 2, 2, 2])).or_else(|| is_form(&[2, 3, 2, 2]));
    // China.
    if found.is_none() && begins(0, "1") {
        found = is_form(&[3, 4, 4]).or_else(|| is_form(&[4, 3, 3]));
    }
    // Brazil, whose mobile numbers have a nine; others in America where a parenthesis says so.
    if found.is_none() && (enclosed || begins(1, "9")) {
        found = is_form(&[2, 5, 4]);
    }
    if found.is_none() && enclosed {
        let forms: [&[usize]; 5] = [&[2, 4, 4], &[3, 7], &[2, 8], &[2, 7], &[2, 9]];
        found = forms.into_iter().find_map(is_form);
        let area = (2..=3).contains(&first.digits.len());
        found = found.or_else(|| longest(groups, 9, 11).filter(|count| area && *count > 1));
    }
    found
}

/// Whether they are written as amounts are: in one piece, or thousands by thousands.
pub(super) fn is_amount(groups: &[Group]) -> bool {
    let [first, more @ ..] = groups else { return false };
    let [next, ..] = more else { return !first.digits.starts_with('0') };
    let thousands = matches!(next.joint, Joint::Space | Joint::Dot)
        && more.iter().all(|group| group.joint == next.joint && group.digits.len() == 3);
    thousands && first.digits.len() <= 3 && !first.digits.starts_with('0')
}

fn number(group: &Group) -> u32 {
    group.digits.parse().unwrap_or(u32::MAX)
}

fn is_year(group: &Group) -> bool {
    group.digits.len() == 4 && (1900..2100).contains(&number(group))
}

/// `0930`, of rosters and timetables.
fn is_time(group: &Group) -> bool {
    group.digits.len() == 4 && number(group) / 100 < 24 && number(group) % 100 < 60
}

/// Whether the groups begin with a date.
fn is_date(groups: &[Group]) -> bool {
    let [one, two, three, ..] = groups else { return false };
    let (day, month) = (number(one), number(two));
    let short = one.digits.len() <= 2 && two.digits.len() <= 2;
    short && (1..=31).contains(&day) && (1..=31).contains(&month) && (day <= 12 || month <= 12) && is_year(three)
}

fn is_iso_date(groups: &[Group]) -> bool {
    let [year, month, day, ..] = groups else { return false };
    is_year(year) && month.digits.len() == 2 && day.digits.len() == 2 && number(month) <= 12 && number(day) <= 31
}

/// Words that a telephone number follows, as they are written.
const TELEPHONE: &str = "\
    tel tél cell ring dial sms text tlf tfn mobil móvil movil celular portable ligue llama llame \
    llamar rufen anrufen appelez appeler rappelez chiama chiamare bel bellen puh gsm тел моб звоните هاتف \
    جوال الهاتف फोन फ़ोन मोबाइल wa ph fon fono fone telf tfno cel contact helpline fax handy festnetz";
/// Words that a telephone number may follow, or the number of anything else.
const PERHAPS: &str = "call reach ruf anruf";
/// Words behind one of those that leave no doubt.
const SOMEBODY: &str = "at on us me him her them unter uns mich nous";
/// What such words begin with.
const TELEPHONE_BEGINNINGS: &str = "\
    phone telef teléf teleph téléph telep mobile mobiltel mobiln mobilfunk handyn whatsapp faxn hotline cellulai \
    cellular cellphone smartphone телефон мобильн puhelin τηλέφων llám";
/// What such words end with.
const TELEPHONE_ENDS: &str = "phone mobile fax telefon telefoon telefono teléfono celular handy телефон";
/// The same where no spaces are written between words, or much is put behind one.
const TELEPHONE_PARTS: &str =
    "phonenumber phoneno mobilenumber mobileno 电话 手机 電話 携帯 传真 전화 휴대폰 thoại โทร";
/// What is none of them.
const NO_TELEPHONE: &str = "immobile automobile headphone microphone saxophone";
/// Words between such a word and the number.
const BETWEEN: &str = "\
    number numbers nummer numéro numero número номер is are ist lautet est es è on at us me him her them \
    unter au al der die the to or oder ou o and und a href value string my your our work home office \
    private direct main uns mich nous no nr now today please";
/// What stands before or behind an amount of money: signs, and words behind it.
const MONEY_SIGNS: &str = "$€£¥₹₽₩₺₴₫₪";
const MONEY: &str = "\
    $ € £ ¥ ₹ ₽ ₩ ₺ ₴ ₫ ₪ euro euros eur usd dollar dollars dólares dolares gbp pound pounds pfund chf franken francs \
    francos jpy yen cny rmb yuan inr rupees rupien pln zł kr sek nok dkk kronen kroner kronor reais brl pesos mxn руб";

/// Whether a sign of money is right before a number.
pub(super) fn is_money_sign(c: char) -> bool {
    MONEY_SIGNS.contains(c)
}

/// Whether a word behind a number, in lower case, says that it is an amount of money.
pub(super) fn is_money(word: &str) -> bool {
    is_in(MONEY, word)
}

/// Whether it may become such a word.
pub(super) fn begins_money(word: &str) -> bool {
    MONEY.split(' ').any(|money| money.starts_with(word))
}

/// Words that a number of something else follows.
const OTHER: &str = "\
    no nr id ids isbn ean gtin upc sku ref reference referenz référence order orders bestellung \
    bestellnummer bestellnr commande pedido invoice rechnung rechnungsnummer facture factura ticket case \
    customer kunde kundennummer account konto kontonummer article artikel artikelnummer item product \
    serial seriennummer part tracking parcel version build commit transaction steuernummer vat iban \
    policy contract vertrag vertragsnummer batch lot model nhs ssn imei passport licence license";

fn is_in(words: &str, word: &str) -> bool {
    words.split(' ').any(|one| one == word)
}

/// What the end of a text says of a number that follows it. `text` is in lower case.
pub(super) fn hint(text: &str) -> Hint {
    let mut end = text.trim_end_matches(' ');
    if end.ends_with('#') {
        return Hint::Other;
    }
    let line = end.rsplit('\n').next().unwrap_or_default();
    end = line;
    let (mut other, mut somebody) = (false, false);
    for _ in 0..5 {
        end = end.trim_end_matches(|c: char| !c.is_alphanumeric() && !"?!;".contains(c));
        let word_start = end.char_indices().rev().take_while(|(_, c)| c.is_alphabetic()).last().map(|(at, _)| at);
        let Some(word_start) = word_start else { break };
        let (rest, word) = end.split_at(word_start);
        let any = |parts: &str, fits: &dyn Fn(&str) -> bool| parts.split(' ').any(fits);
        let says_so = is_in(TELEPHONE, word)
            || any(TELEPHONE_BEGINNINGS, &|part| word.starts_with(part))
            || any(TELEPHONE_ENDS, &|part| word.ends_with(part))
            || any(TELEPHONE_PARTS, &|part| word.contains(part));
        if says_so && !is_in(NO_TELEPHONE, word) {
            return Hint::Telephone;
        }
        if is_in(PERHAPS, word) {
            return if somebody { Hint::Telephone } else { Hint::Perhaps };
        }
        somebody |= is_in(SOMEBODY, word);
        other |= is_in(OTHER, word);
        if !is_in(BETWEEN, word) {
            break;
        }
        end = rest;
    }
    if other { Hint::Other } else { Hint::None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_before_a_number_says_what_it_is() {
        for text in [
            "phone: ",
            "call us at ",
            "my phone number is ",
            "\"phone\": \"",
            "tel.-nr.: ",
            "| telefon | ",
            "href=\"tel:",
            "我的电话是",
            "mobile (private): ",
            "mobiltelefon: ",
            "diensthandy ",
            "smartphone: ",
            "téléphone : ",
            "reach us on ",
            "mobile_number\": \"",
            "teléfono: ",
            "\"homephone\": ",
            "\"userphonenumber\": ",
            "contactmobile=",
        ] {
            assert_eq!(hint(text), Hint::Telephone, "{text}");
        }
        for text in ["call ", "will reach ", "anruf: ", "reach the number "] {
            assert_eq!(hint(text), Hint::Perhaps, "{text}");
        }
        for text in ["order ", "order number: ", "no. ", "#", "isbn ", "\"order_id\": ", "ref: ", "rechnung nr. "] {
            assert_eq!(hint(text), Hint::Other, "{text}");
        }
        for text in [
            "",
            "it is ",
            "phones sold. in all ",
            "telephone\n",
            "the number ",
            "immobilie: ",
            "immobilier : ",
            "automobiles: ",
            "automobil ",
            "automobile: ",
            "mobilier : ",
            "téléchargements : ",
            "téléviseurs : ",
            "anrufe: ",
            "api calls: ",
            "headphones: ",
        ] {
            assert_eq!(hint(text), Hint::None, "{text}");
        }
    }
}
