//! Vectors as providers write them, and how much of them is read: an answer of theirs must not fill the memory, whoever
//! is at the address that a tenant has given.
//!
//! As text a number may take two bytes and becomes four; so the bytes of an answer have a bound, each vector has one, and
//! so have all vectors of a request together, however many answers they come in.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use super::error::ProviderError;
use super::{Embeddings, Usage};

/// Bytes of an answer that each text may have: the longest known vectors have about 70,000.
const BYTES_A_TEXT: usize = 128 * 1024;
/// Bytes that an answer may have in any case.
const MIN_BYTES: usize = 64 * 1024;
/// Bytes that all answers to one request may have together.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Numbers that all vectors of one request may have together: as many as fit in that many bytes of text.
const MOST_NUMBERS: usize = MAX_BYTES / 2;
/// Longer vectors than any model makes.
const LONGEST: usize = 65_536;

/// How many bytes the answer for so many texts may have.
pub(super) fn most_bytes(texts: usize) -> usize {
    texts.saturating_mul(BYTES_A_TEXT).clamp(MIN_BYTES, MAX_BYTES)
}

/// The vectors of an answer for so many texts, in their order.
pub(super) fn one_a_text(
    texts: usize,
    answer: impl ExactSizeIterator<Item = Numbers>,
) -> Result<Vec<Vec<f32>>, ProviderError> {
    if answer.len() != texts {
        return Err(ProviderError::Unavailable("the answer does not have one vector a text".into()));
    }
    Ok(answer.map(|Numbers(numbers)| numbers).collect())
}

impl Embeddings {
    /// Takes those of more texts behind these.
    ///
    /// # Errors
    /// If they are together larger than vectors of one request may be.
    pub fn append(&mut self, more: Self) -> Result<(), ProviderError> {
        self.vectors.extend(more.vectors);
        if self.vectors.iter().map(Vec::len).sum::<usize>() > MOST_NUMBERS {
            return Err(ProviderError::Unavailable("the vectors are larger than allowed".into()));
        }
        self.usage = self.usage.zip(more.usage).map(|(usage, more)| Usage {
            input_tokens: usage.input_tokens.saturating_add(more.input_tokens),
            output_tokens: usage.output_tokens.saturating_add(more.output_tokens),
            cached_input_tokens: usage.cached_input_tokens.saturating_add(more.cached_input_tokens),
            reported: usage.reported && more.reported,
        });
        Ok(())
    }
}

/// The numbers of one vector.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Numbers(pub(super) Vec<f32>);

impl Numbers {
    /// Reads them from a list.
    pub(super) fn read<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let mut numbers = Vec::new();
        while let Some(number) = list.next_element()? {
            if numbers.len() == LONGEST {
                return Err(A::Error::custom("the vector is too long"));
            }
            numbers.push(number);
        }
        Ok(Self(numbers))
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Numbers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("numbers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Numbers, A::Error> {
                Numbers::read(list)
            }
        }

        deserializer.deserialize_seq(List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_has_a_bound() {
        let list = |length: usize| format!("[{}]", vec!["0"; length].join(","));
        assert_eq!(serde_json::from_str::<Numbers>(&list(3)).unwrap(), Numbers(vec![0.0; 3]));
        assert_eq!(serde_json::from_str::<Numbers>(&list(LONGEST)).unwrap().0.len(), LONGEST);
        assert!(serde_json::from_str::<Numbers>(&list(LONGEST + 1)).is_err());
    }

    #[test]
    fn an_answer_and_all_answers_together_have_bounds() {
        assert_eq!([0, 1, 100, 2_048].map(most_bytes), [MIN_BYTES, BYTES_A_TEXT, 100 * BYTES_A_TEXT, MAX_BYTES]);
        let answer = || vec![Numbers(vec![0.5]), Numbers(vec![1.5])].into_iter();
        assert_eq!(one_a_text(2, answer()).unwrap(), [[0.5], [1.5]]);
        assert!(one_a_text(3, answer()).is_err());
        let usage = |reported| Usage { input_tokens: 2, output_tokens: 0, cached_input_tokens: 1, reported };
        let more = |reported| Embeddings { vectors: vec![vec![0.0; LONGEST]; 100], usage: Some(usage(reported)) };
        let mut all = more(true);
        all.append(more(true)).unwrap();
        assert_eq!((all.vectors.len(), all.usage.unwrap().input_tokens, all.usage.unwrap().reported), (200, 4, true));
        all.append(more(false)).unwrap();
        assert!(!all.usage.unwrap().reported);
        all.append(more(true)).unwrap();
        all.append(more(true)).unwrap();
        assert_eq!(all.append(more(true)).unwrap_err().code(), "provider_unavailable");
    }
}
