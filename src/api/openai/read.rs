//! Reading an object field by field, so that a field that is refused can be named without quoting its value.

use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::error::Category;

use crate::json;

/// Why a body was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefusedBody {
    /// It is not JSON.
    NotJson,
    /// It has more elements than any sensible one, and would take far more memory than bytes.
    TooManyElements,
    /// It is JSON, but no object.
    NotAnObject,
    /// This field has the wrong type.
    WrongType(String),
}

/// An object that is read field by field.
pub(super) trait Object: Default {
    /// Reads the value of the field of this name.
    fn field<'de, M: MapAccess<'de>>(&mut self, name: String, fields: &mut M) -> Result<(), M::Error>;
}

/// Reads an object.
pub(super) fn object<T: Object>(body: &[u8]) -> Result<T, RefusedBody> {
    if json::elements(body) > json::MOST_ELEMENTS {
        return Err(RefusedBody::TooManyElements);
    }
    let mut field = String::new();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let reader = Reader { field: &mut field, object: PhantomData };
    let read = reader.deserialize(&mut deserializer);
    let read = read.and_then(|object| deserializer.end().map(|()| object));
    read.map_err(|error| match error.classify() {
        Category::Data if field.is_empty() => RefusedBody::NotAnObject,
        Category::Data => RefusedBody::WrongType(field),
        Category::Io | Category::Syntax | Category::Eof => RefusedBody::NotJson,
    })
}

struct Reader<'a, T> {
    /// The field whose value is being read.
    field: &'a mut String,
    object: PhantomData<T>,
}

impl<'de, T: Object> DeserializeSeed<'de> for Reader<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: Object> Visitor<'de> for Reader<'_, T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut fields: M) -> Result<T, M::Error> {
        let mut object = T::default();
        while let Some(name) = fields.next_key::<String>()? {
            self.field.clone_from(&name);
            object.field(name, &mut fields)?;
            self.field.clear();
        }
        Ok(object)
    }
}
