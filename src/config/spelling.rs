//! Variables of the environment that look like a setting and are none: a slip of the keyboard would otherwise go unnoticed,
//! and the server run with a default.

use super::SETTINGS;

/// What the names of settings in the environment begin with.
const PREFIX: &str = "FREEHOLD_";
/// Names that differ in more places are names of something else: an orchestrator's, of a service that is called `freehold`.
const FARTHEST: usize = 2;

/// The names that are nearly a setting's, each with that setting's.
pub fn misspelt<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(&'a str, String)> {
    let known: Vec<String> =
        SETTINGS.iter().flat_map(|setting| [setting.env.to_owned(), format!("{}_FILE", setting.env)]).collect();
    let others = ["FREEHOLD_CONFIG", "FREEHOLD_CONFIG_DIR", "FREEHOLD_SERVER", "FREEHOLD_PASSWORD_FILE"];
    names
        .filter(|name| name.starts_with(PREFIX) && !others.contains(name) && !known.iter().any(|known| known == name))
        .filter_map(|name| {
            let nearest = known.iter().map(|known| (distance(name, known), known)).min()?;
            (nearest.0 <= FARTHEST).then(|| (name, nearest.1.clone()))
        })
        .collect()
}

/// How many letters have to be put in, taken out or exchanged to make one of the other.
fn distance(one: &str, other: &str) -> usize {
    let mut before: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.bytes().enumerate() {
        let mut row = vec![index + 1];
        for ((pair, insert), wanted) in before.windows(2).zip(0..).zip(other.bytes()) {
            let (Some(diagonal), Some(above)) = (pair.first(), pair.last()) else { continue };
            let left = row.get(insert).copied().unwrap_or(usize::MAX - 1);
            let exchanged = diagonal + usize::from(letter != wanted);
            row.push(exchanged.min(above + 1).min(left + 1));
        }
        before = row;
    }
    before.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_with_what_was_meant_and_other_names_are_left_alone() {
        let names = [
            "FREEHOLD_LISTEM",
            "FREEHOLD_PUBLICURL",
            "FREEHOLD_MASTER_KEY_FILE",
            "FREEHOLD_LISTEN",
            "FREEHOLD_CONFIG",
            "FREEHOLD_SERVICE_HOST",
            "FREEHOLD_PORT_8080_TCP",
            "PATH",
        ];
        let told = misspelt(names.into_iter());
        let told: Vec<(&str, &str)> = told.iter().map(|(name, meant)| (*name, meant.as_str())).collect();
        let expected = [
            ("FREEHOLD_LISTEM", "FREEHOLD_LISTEN"),
            ("FREEHOLD_PUBLICURL", "FREEHOLD_PUBLIC_URL"),
            ("FREEHOLD_MASTER_KEY_FILE", "FREEHOLD_MASTER_KEYS_FILE"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn distances_are_counted() {
        for (one, other, steps) in [("abc", "abc", 0), ("abc", "ab", 1), ("", "ab", 2), ("kitten", "sitting", 3)] {
            assert_eq!(distance(one, other), steps, "{one} {other}");
        }
    }
}
