//! Which digits are a payment card's number.

/// Prefixes of issuers, and the lengths of their numbers.
const ISSUERS: &[(&str, &[usize])] = &[
    // Visa
    ("4", &[13, 16, 19]),
    // Mastercard
    ("51", &[16]),
    ("52", &[16]),
    ("53", &[16]),
    ("54", &[16]),
    ("55", &[16]),
    // American Express
    ("34", &[15]),
    ("37", &[15]),
    // Diners Club
    ("300", &[14, 16]),
    ("301", &[14, 16]),
    ("302", &[14, 16]),
    ("303", &[14, 16]),
    ("304", &[14, 16]),
    ("305", &[14, 16]),
    ("309", &[14, 16]),
    ("36", &[14, 16]),
    ("38", &[14, 16]),
    ("39", &[14, 16]),
    // JCB
    ("35", &[16, 17, 18, 19]),
    // Discover, UnionPay, RuPay, Maestro, Verve, Mir, Troy
    ("60", &[16, 17, 18, 19]),
    ("62", &[16, 17, 18, 19]),
    ("64", &[16, 17, 18, 19]),
    ("65", &[16, 17, 18, 19]),
    ("81", &[16, 17, 18, 19]),
    ("82", &[16]),
    ("50", &[13, 14, 15, 16, 17, 18, 19]),
    ("56", &[13, 14, 15, 16, 17, 18, 19]),
    ("57", &[13, 14, 15, 16, 17, 18, 19]),
    ("58", &[13, 14, 15, 16, 17, 18, 19]),
    ("63", &[13, 14, 15, 16, 17, 18, 19]),
    ("67", &[13, 14, 15, 16, 17, 18, 19]),
    ("220", &[16, 17, 18, 19]),
    ("9792", &[16]),
];

/// Whether these digits are a card's number.
pub(super) fn is_card_number(digits: &str) -> bool {
    let issued = ISSUERS.iter().any(|(prefix, lengths)| digits.starts_with(prefix) && lengths.contains(&digits.len()));
    let issued =
        issued || (digits.len() == 16 && digits.get(..4).is_some_and(|four| ("2221"..="2720").contains(&four)));
    // The numbers on goods have thirteen digits and a check digit of their own.
    issued && luhn(digits) && !(digits.len() == 13 && is_article_number(digits))
}

/// Whether groups of these sizes are how people write a card's number. `stands_alone`: no more groups of the same kind
/// are around it.
pub(super) fn is_grouping(sizes: &[usize], stands_alone: bool) -> bool {
    let Some((_, before)) = sizes.split_last() else { return false };
    if before.iter().all(|size| *size >= 3) {
        return true;
    }
    // Rows of small numbers are common, and so is a tenth of all numbers that passes the check.
    let Some(first) = before.first() else { return false };
    stands_alone && before.iter().all(|size| size == first) && sizes.last() <= Some(first)
}

fn values(digits: &str) -> impl DoubleEndedIterator<Item = u32> {
    digits.chars().filter_map(|digit| digit.to_digit(10))
}

fn luhn(digits: &str) -> bool {
    let sum: u32 = values(digits)
        .rev()
        .enumerate()
        .map(|(place, digit)| match place % 2 {
            0 => digit,
            _ if digit > 4 => digit * 2 - 9,
            _ => digit * 2,
        })
        .sum();
    // Zeros alone pass the check.
    sum > 0 && sum.is_multiple_of(10)
}

fn is_article_number(digits: &str) -> bool {
    let sum: u32 =
        values(digits).enumerate().map(|(place, digit)| if place.is_multiple_of(2) { digit } else { digit * 3 }).sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_issuers_publish_for_tests_are_known() {
        for number in [
            "4111111111111111",
            "4242424242424242",
            "4012888888881881",
            "4222222222222",
            "5555555555554444",
            "5105105105105100",
            "2223003122003222",
            "2720992222222229",
            "378282246310005",
            "371449635398431",
            "30569309025904",
            "38520000023237",
            "36227206271667",
            "3530111333300000",
            "3566002020360505",
            "6011111111111117",
            "6011000990139424",
            "6200000000000005",
            "6759649826438453",
            "6799990100000000019",
            "2200000000000004",
        ] {
            assert!(is_card_number(number), "{number}");
            // Any single digit that is wrong is noticed.
            let wrong =
                format!("{}{}", &number[..number.len() - 1], (number.as_bytes()[number.len() - 1] - b'0' + 1) % 10);
            assert!(!is_card_number(&wrong), "{wrong}");
        }
    }

    #[test]
    fn other_numbers_are_not() {
        for number in
            ["0000000000000000", "1234567812345670", "4006381333931", "1700000000000", "49927398716", "9780306406157"]
        {
            assert!(!is_card_number(number), "{number}");
        }
    }
}
