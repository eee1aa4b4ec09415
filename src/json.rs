//! What a JSON text from outside costs in memory, and what may be said of one that cannot be read.
//!
//! A list of `{}` takes three bytes a member as text and a hundred as values, so the length of a text says little of
//! what reading it takes: the number of its elements does. Knows nothing of what the texts mean.

/// The elements of a text that is read into values, at most. A long conversation with tools has some thousands.
pub const MOST_ELEMENTS: usize = 100_000;

/// Counts what becomes a value of its own: commas and opening brackets outside of strings. Meaningful for what is JSON;
/// for anything else it is some number.
#[must_use]
pub fn elements(text: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (0, false, false);
    for byte in text {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
        } else {
            match byte {
                b'"' => in_string = true,
                b',' | b'[' | b'{' => count += 1,
                _ => {}
            }
        }
    }
    count
}

/// Where a text could not be read. The error itself may quote what stands there: a prompt, or a key.
#[must_use]
pub fn place(error: &serde_json::Error) -> String {
    format!("{:?} error at line {}, column {}", error.classify(), error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_counted_outside_of_strings() {
        assert_eq!(elements(b"{}"), 1);
        assert_eq!(elements(br#"{"a":[1,2,{}],"b":"[,{\",["}"#), 6);
        assert_eq!(elements(br#"["\\",1]"#), 2);
        assert_eq!(elements(b"[{},{},{}]"), 6);
    }

    #[test]
    fn a_place_quotes_nothing() {
        let error = serde_json::from_str::<u32>(r#""a secret""#).unwrap_err();
        assert!(error.to_string().contains("secret"));
        assert_eq!(place(&error), "Data error at line 1, column 10");
    }
}
