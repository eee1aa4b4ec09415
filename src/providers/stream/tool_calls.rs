//! The tool calls of one answer, numbered and named the way the rest of the program relies on.
//!
//! Upstreams leave out the index or give every call the same one, start at one, repeat name and id with each piece,
//! give no id at all, or invent a new one for each piece. What comes out counts from zero without gaps, and names each
//! call once, with its first piece.

use std::collections::VecDeque;

use uuid::Uuid;

use super::Broken;
use crate::providers::{ChatEvent, ToolCallDelta};

/// The most calls of one answer. It also bounds the search for the call that a piece belongs to.
const MAX_CALLS: usize = 128;

/// A piece of a tool call as an upstream gave it. What is empty counts as missing.
#[derive(Debug, Default)]
pub(in crate::providers) struct CallPiece {
    pub(in crate::providers) index: Option<u64>,
    pub(in crate::providers) id: Option<String>,
    pub(in crate::providers) name: Option<String>,
    pub(in crate::providers) arguments: String,
}

/// All calls of the answer so far.
#[derive(Default)]
pub(super) struct ToolCalls {
    calls: Vec<Call>,
    /// How many of them were told.
    told: u32,
}

struct Call {
    index: Option<u64>,
    /// As the upstream gave it, which need not be unique.
    id: Option<String>,
    /// Empty until it is known: then the call cannot be told yet.
    name: String,
    /// Its number, once it was told.
    number: Option<u32>,
    /// Arguments that came before the name.
    held: String,
    extent: Extent,
}

impl ToolCalls {
    /// Whether any call was told.
    pub(super) fn any(&self) -> bool {
        self.told > 0
    }

    /// Takes in a piece and tells what can be told.
    pub(super) fn take_in(&mut self, piece: CallPiece, out: &mut VecDeque<ChatEvent>) -> Result<(), Broken> {
        let id = piece.id.filter(|id| !id.is_empty());
        let name = piece.name.unwrap_or_default();
        let position = match self.find(piece.index, id.as_deref(), &name) {
            Some(position) => position,
            None => self.begin(piece.index, id.as_deref())?,
        };
        let Some(call) = self.calls.get_mut(position) else { return Ok(()) };
        if call.id.is_none() && call.number.is_none() {
            call.id = id;
        }
        if call.name.is_empty() {
            call.name = name;
        }
        let mut arguments = piece.arguments;
        arguments.truncate(call.extent.take_in(&arguments));
        if let Some(number) = call.number {
            if !arguments.is_empty() {
                out.push_back(ChatEvent::ToolCall(ToolCallDelta { index: number, id: None, name: None, arguments }));
            }
            return Ok(());
        }
        if call.held.is_empty() {
            call.held = arguments;
        } else {
            call.held.push_str(&arguments);
        }
        if !call.name.is_empty() {
            self.tell(position, out);
        }
        Ok(())
    }

    /// Tells a call for the first time.
    fn tell(&mut self, position: usize, out: &mut VecDeque<ChatEvent>) {
        let Some((before, rest)) = self.calls.split_at_mut_checked(position) else { return };
        let Some(call) = rest.first_mut() else { return };
        // An id is unique among the calls that are told. One that is not is replaced.
        let id = call.id.clone().filter(|id| !before.iter().any(|call| call.id.as_deref() == Some(id)));
        out.push_back(ChatEvent::ToolCall(ToolCallDelta {
            index: self.told,
            id: Some(id.unwrap_or_else(|| format!("call_{}", Uuid::now_v7().simple()))),
            name: Some(call.name.clone()),
            arguments: std::mem::take(&mut call.held),
        }));
        call.number = Some(self.told);
        self.told += 1;
    }

    /// Ends the calls: whoever parses the arguments of a call without any has to find an object.
    pub(super) fn finish(&self, out: &mut VecDeque<ChatEvent>) -> Result<(), Broken> {
        for call in &self.calls {
            let Some(index) = call.number else { return Err(Broken::NamelessCall) };
            if call.extent.is_empty() {
                let arguments = "{}".to_owned();
                out.push_back(ChatEvent::ToolCall(ToolCallDelta { index, id: None, name: None, arguments }));
            }
        }
        Ok(())
    }

    /// The call that a piece goes on with; `None` if it begins one.
    fn find(&self, index: Option<u64>, id: Option<&str>, name: &str) -> Option<usize> {
        if let Some(id) = id {
            let here = |call: &Call| call.id.as_deref() == Some(id) && (index.is_none() || call.index == index);
            let anywhere = |call: &Call| call.id.as_deref() == Some(id);
            if let Some(position) = self.calls.iter().rposition(here) {
                return Some(position);
            }
            if let Some(position) = self.calls.iter().rposition(anywhere) {
                // A second call with a name, at another place and after the first was complete: some servers use the
                // tool's name as the id.
                let complete = self.calls.get(position).is_some_and(|call| call.extent.complete());
                let another = complete && !name.is_empty();
                return (!another).then_some(position);
            }
        }
        let position = match index {
            Some(_) => self.calls.iter().rposition(|call| call.index == index),
            None => self.calls.len().checked_sub(1),
        };
        let Some(call) = position.and_then(|position| self.calls.get(position)) else {
            // An index never heard of, but nothing else of a new call: the last one goes on if it has to.
            let unfinished = self.calls.last().is_some_and(|call| !call.extent.complete());
            return (id.is_none() && name.is_empty() && unfinished).then(|| self.calls.len() - 1);
        };
        let same = match (id, name.is_empty()) {
            // A new id without a name is the same call under an id that changes with each piece.
            (Some(_), true) => !call.extent.complete(),
            // Told apart by their ids, unless the first had none and was still waiting for its name.
            (Some(_), false) => call.name.is_empty() && call.id.is_none(),
            (None, true) => true,
            (None, false) => call.name.is_empty() || (call.name == name && !call.extent.complete()),
        };
        if same { position } else { None }
    }

    fn begin(&mut self, index: Option<u64>, id: Option<&str>) -> Result<usize, Broken> {
        if self.calls.len() >= MAX_CALLS {
            return Err(Broken::TooManyCalls);
        }
        self.calls.push(Call {
            index,
            id: id.map(str::to_owned),
            name: String::new(),
            number: None,
            held: String::new(),
            extent: Extent::default(),
        });
        Ok(self.calls.len() - 1)
    }
}

/// How far a JSON object or list has come, read piece by piece and each byte once.
#[derive(Default)]
struct Extent {
    depth: u32,
    in_string: bool,
    escaped: bool,
    begun: bool,
    some: bool,
}

impl Extent {
    /// Whether the object has ended.
    fn complete(&self) -> bool {
        self.begun && self.depth == 0
    }

    fn is_empty(&self) -> bool {
        !self.some
    }

    /// Reads on, and returns how many bytes of the piece belong to the arguments: nothing behind their end does.
    fn take_in(&mut self, piece: &str) -> usize {
        if self.complete() {
            return 0;
        }
        self.some |= !piece.is_empty();
        for (position, byte) in piece.bytes().enumerate() {
            if self.escaped {
                self.escaped = false;
                continue;
            }
            match byte {
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => {
                    self.depth = self.depth.saturating_add(1);
                    self.begun = true;
                }
                b'}' | b']' if !self.in_string => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            if self.complete() {
                return position + 1;
            }
        }
        piece.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Piece = (Option<u64>, &'static str, &'static str, &'static str);

    /// The calls as a client would put them together, after checking the promises of each event.
    fn told(pieces: &[Piece]) -> Vec<(String, String, String)> {
        let mut calls = ToolCalls::default();
        let mut out = VecDeque::new();
        for &(index, id, name, arguments) in pieces {
            let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let piece = CallPiece { index, id: optional(id), name: optional(name), arguments: arguments.to_owned() };
            calls.take_in(piece, &mut out).unwrap();
        }
        calls.finish(&mut out).unwrap();
        let mut told: Vec<(String, String, String)> = Vec::new();
        for event in out {
            let ChatEvent::ToolCall(delta) = event else { panic!("only tool calls") };
            let index = delta.index as usize;
            if let (Some(id), Some(name)) = (delta.id, delta.name) {
                assert_eq!(index, told.len(), "counted without gaps, named once");
                told.push((id, name, delta.arguments));
            } else {
                assert!(!delta.arguments.is_empty());
                told[index].2.push_str(&delta.arguments);
            }
        }
        told
    }

    fn expect(pieces: &[Piece], expected: &[(&str, &str, &str)]) {
        let told = told(pieces);
        let told: Vec<_> = told.iter().map(|(id, name, args)| (id.as_str(), name.as_str(), args.as_str())).collect();
        assert_eq!(told, expected, "{pieces:?}");
    }

    #[test]
    fn calls_as_openai_sends_them() {
        let pieces = [
            (Some(0), "a", "f", ""),
            (Some(0), "", "", "{\"x\":"),
            (Some(1), "b", "g", ""),
            (Some(0), "", "", "1}"),
            (Some(1), "", "", "{}"),
        ];
        expect(&pieces, &[("a", "f", "{\"x\":1}"), ("b", "g", "{}")]);
    }

    #[test]
    fn odd_indexes_are_numbered_again_by_id() {
        // All at zero, missing, from one, far apart.
        for indexes in [[Some(0), Some(0)], [None, None], [Some(1), Some(2)], [Some(7), Some(3)]] {
            let pieces = [
                (indexes[0], "a", "f", "{\"x\":"),
                (indexes[0], "a", "f", "1}"),
                (indexes[1], "b", "f", "{\"y\":"),
                (indexes[1], "b", "", "\"}\"}"),
            ];
            expect(&pieces, &[("a", "f", "{\"x\":1}"), ("b", "f", "{\"y\":\"}\"}")]);
        }
        // Interleaved at one index: the ids tell.
        let pieces =
            [(Some(0), "a", "f", ""), (Some(0), "b", "g", ""), (Some(0), "a", "", "{}"), (None, "b", "", "[]")];
        expect(&pieces, &[("a", "f", "{}"), ("b", "g", "[]")]);
        // An index that grows with each piece.
        expect(&[(Some(0), "a", "f", "{"), (Some(1), "", "", "}")], &[("a", "f", "{}")]);
        // An id that changes with each piece.
        expect(&[(Some(0), "a", "f", "{"), (Some(0), "b", "", "}")], &[("a", "f", "{}")]);
    }

    #[test]
    fn missing_ids_are_made_up_and_doubled_ones_replaced() {
        let calls = told(&[(Some(0), "", "f", "{}"), (Some(0), "", "f", "{}"), (None, "", "g", "{}")]);
        assert_eq!(calls.len(), 3);
        assert!(calls.iter().all(|(id, _, _)| id.starts_with("call_") && id.len() > 20));
        let calls = told(&[(Some(0), "f", "f", "{\"a\":1}"), (Some(1), "f", "f", "{\"a\":2}")]);
        assert_eq!((calls.len(), calls[0].0.as_str()), (2, "f"));
        assert_ne!(calls[0].0, calls[1].0);
        assert_eq!(calls[1].2, "{\"a\":2}");
        let streamed = [(Some(0), "f", "f", "{}"), (Some(1), "f", "f", "{\"a\":"), (Some(1), "f", "", "2}")];
        assert_eq!(told(&streamed)[1].2, "{\"a\":2}");
    }

    #[test]
    fn repeated_names_and_late_names_are_one_call() {
        expect(&[(Some(0), "a", "f", "{\"x\":"), (Some(0), "", "f", "1}")], &[("a", "f", "{\"x\":1}")]);
        expect(&[(Some(0), "a", "", ""), (Some(0), "", "f", ""), (Some(0), "", "", "{}")], &[("a", "f", "{}")]);
        expect(&[(Some(0), "a", "", "{\"x\""), (Some(0), "", "f", ":1}")], &[("a", "f", "{\"x\":1}")]);
        // The whole call again at the end.
        expect(&[(Some(0), "a", "f", "{}"), (Some(0), "a", "f", "{}")], &[("a", "f", "{}")]);
    }

    #[test]
    fn arguments_are_never_empty_and_end_with_their_object() {
        expect(&[(Some(0), "a", "f", "")], &[("a", "f", "{}")]);
        expect(&[(Some(0), "a", "f", "{\"x\":\"\\\"}\"} trailing")], &[("a", "f", "{\"x\":\"\\\"}\"}")]);
        expect(&[(Some(0), "a", "f", "null")], &[("a", "f", "null")]);
    }

    #[test]
    fn what_cannot_be_told_is_an_error() {
        let mut calls = ToolCalls::default();
        let mut out = VecDeque::new();
        calls.take_in(CallPiece { arguments: "{}".to_owned(), ..CallPiece::default() }, &mut out).unwrap();
        assert!(out.is_empty() && matches!(calls.finish(&mut out), Err(Broken::NamelessCall)));
        let mut calls = ToolCalls::default();
        let mut take = |id: usize| {
            let piece = CallPiece { id: Some(id.to_string()), name: Some("f".to_owned()), ..CallPiece::default() };
            calls.take_in(piece, &mut out)
        };
        assert!((0..MAX_CALLS).all(|id| take(id).is_ok()));
        assert!(matches!(take(MAX_CALLS), Err(Broken::TooManyCalls)));
    }
}
