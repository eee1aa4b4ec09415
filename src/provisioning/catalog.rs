//! What a database's catalog says of its schema, in a form that two databases can be compared by: one digest for all of
//! it, and, where the digests differ, a digest for each object.
//!
//! Compared is what the migrations decide: tables, columns, constraints, indexes, views, sequences, triggers, policies,
//! functions and types of the schema `public`. Not compared: owners and rights, which differ from tenant to tenant, what
//! an extension brought along, statistics, comments.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, SimpleQueryMessage};

/// One row an object: kind, name, definition. Every name in a definition is qualified, for the search path is
/// `pg_catalog` alone. NOT NULL is compared with its column; from version 18 on it is a constraint as well.
const OBJECTS: &str = "
    SELECT 'table' AS kind, c.relname::text AS name,
           concat_ws(' ', c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, c.reloptions::text,
                     pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid)) AS definition
    FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'f')
      AND NOT EXISTS (SELECT FROM extension e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid)
    UNION ALL
    SELECT 'column', c.relname || '.' || a.attname,
           concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
                     CASE WHEN a.attcollation <> t.typcollation THEN a.attcollation::regcollation::text END,
                     pg_get_expr(d.adbin, d.adrelid))
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'f', 'c') AND a.attnum > 0
      AND NOT a.attisdropped
      AND NOT EXISTS (SELECT FROM extension e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid)
    UNION ALL
    SELECT 'constraint', concat_ws('.', c.relname, o.conname), concat_ws(' ', pg_get_constraintdef(o.oid), o.convalidated)
    FROM pg_constraint o LEFT JOIN pg_class c ON c.oid = o.conrelid
    WHERE o.connamespace = 'public'::regnamespace AND o.contype NOT IN ('n', 't')
      AND NOT EXISTS (SELECT FROM extension e WHERE e.objid IN (o.oid, o.conrelid))
    UNION ALL
    SELECT 'index', c.relname::text, concat_ws(' ', pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisready)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE c.relnamespace = 'public'::regnamespace
      AND NOT EXISTS (SELECT FROM extension e WHERE e.objid = i.indrelid)
    UNION ALL
    SELECT 'view', c.relname::text, concat_ws(' ', c.relkind, c.reloptions::text, pg_get_viewdef(c.oid))
    FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('v', 'm')
      AND NOT EXISTS (SELECT FROM extension e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid)
    UNION ALL
    SELECT 'sequence', c.relname::text,
           concat_ws(' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle)
    FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid WHERE c.relnamespace = 'public'::regnamespace
      AND NOT EXISTS (SELECT FROM extension e WHERE e.objid = c.oid)
    UNION ALL
    SELECT 'trigger', c.relname || '.' || g.tgname, concat_ws(' ', pg_get_triggerdef(g.oid), g.tgenabled)
    FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid
    WHERE c.relnamespace = 'public'::regnamespace AND NOT g.tgisinternal
    UNION ALL
    SELECT 'rule', c.relname || '.' || r.rulename, concat_ws(' ', pg_get_ruledef(r.oid), r.ev_enabled)
    FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
    WHERE c.relnamespace = 'public'::regnamespace AND r.rulename <> '_RETURN'
    UNION ALL
    SELECT 'policy', c.relname || '.' || p.polname,
           concat_ws(' ', p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid),
                     pg_get_expr(p.polwithcheck, p.polrelid))
    FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'function', p.oid::regprocedure::text,
           concat_ws(' ', p.prokind, p.prosecdef, p.provolatile, p.proisstrict, l.lanname, p.prosrc, p.proconfig::text,
                     pg_get_function_result(p.oid), pg_get_function_arguments(p.oid))
    FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.pronamespace = 'public'::regnamespace
      AND NOT EXISTS (SELECT FROM extension e WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid)
    UNION ALL
    SELECT 'type', y.typname::text,
           concat_ws(' ', y.typtype, format_type(y.typbasetype, y.typtypmod), y.typnotnull, y.typdefault,
                     (SELECT string_agg(quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder)
                      FROM pg_enum e WHERE e.enumtypid = y.oid))
    FROM pg_type y WHERE y.typnamespace = 'public'::regnamespace AND y.typtype IN ('e', 'd', 'r')
      AND NOT EXISTS (SELECT FROM extension e WHERE e.classid = 'pg_type'::regclass AND e.objid = y.oid)";

/// What an extension brought along.
const EXTENSION: &str = "extension AS MATERIALIZED (SELECT classid, objid FROM pg_depend WHERE deptype = 'e')";

/// So that a name means the same everywhere, and a database that does not answer does not keep us.
const SETUP: &str = "SET search_path = pg_catalog; SET statement_timeout = 30000; SET lock_timeout = 2000; \
                     SET jit = off;";

/// An object of a schema, named.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SchemaObject {
    /// `table`, `column`, `constraint`, `index` and so on.
    pub kind: String,
    /// Its name; that of a column, constraint or trigger with its table's before it.
    pub name: String,
}

/// A database's schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    /// A digest of all objects.
    pub digest: String,
    /// A digest of each.
    pub objects: BTreeMap<SchemaObject, String>,
}

/// A catalog as text, with the version of the server that read it: another one may show a definition otherwise.
#[derive(Serialize, Deserialize)]
struct Kept {
    server_version: i32,
    digest: String,
    objects: Vec<(String, String, String)>,
}

impl Catalog {
    pub(super) fn to_text(&self, server_version: i32) -> Option<String> {
        let object =
            |(object, digest): (&SchemaObject, &String)| (object.kind.clone(), object.name.clone(), digest.clone());
        let objects = self.objects.iter().map(object).collect();
        serde_json::to_string(&Kept { server_version, digest: self.digest.clone(), objects }).ok()
    }

    /// Nothing if it is not one, or was read by a server of another major version.
    pub(super) fn from_text(text: &str, server_version: i32) -> Option<Self> {
        let kept: Kept = serde_json::from_str(text).ok()?;
        let object = |(kind, name, digest)| (SchemaObject { kind, name }, digest);
        (kept.server_version / 10_000 == server_version / 10_000)
            .then(|| Self { digest: kept.digest, objects: kept.objects.into_iter().map(object).collect() })
    }

    /// Objects that `other` lacks, has otherwise, or has beyond these.
    pub fn differences(&self, other: &Self) -> Differences {
        let mut found = Differences::default();
        for (object, digest) in &self.objects {
            match other.objects.get(object) {
                None => found.missing.push(object.clone()),
                Some(theirs) if theirs != digest => found.changed.push(object.clone()),
                Some(_) => {}
            }
        }
        found.extra = other.objects.keys().filter(|object| !self.objects.contains_key(object)).cloned().collect();
        found
    }
}

/// What differs between a schema as it has to be and one as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// Not there.
    pub missing: Vec<SchemaObject>,
    /// There, and different.
    pub changed: Vec<SchemaObject>,
    /// There, and not known.
    pub extra: Vec<SchemaObject>,
}

/// A migration as the database has noted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedMigration {
    /// Its version.
    pub version: i64,
    /// The SHA-384 of its text.
    pub checksum: Vec<u8>,
    /// Whether it was carried out.
    pub success: bool,
}

/// What one round trip tells of a database.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// The migrations it has noted, in order.
    pub applied: Vec<AppliedMigration>,
    /// The digest of its schema.
    pub digest: String,
}

/// Reads migrations and the schema's digest in one round trip.
pub async fn inspect(client: &Client) -> Result<Inspection, tokio_postgres::Error> {
    let sql = format!(
        "{SETUP}
         SELECT version, encode(checksum, 'hex'), success FROM public._sqlx_migrations ORDER BY version;
         WITH {EXTENSION}, object AS ({OBJECTS})
         SELECT {} FROM object",
        digest()
    );
    let mut inspection = Inspection { applied: Vec::new(), digest: String::new() };
    for message in client.simple_query(&sql).await? {
        let SimpleQueryMessage::Row(row) = message else { continue };
        if row.len() == 1 {
            inspection.digest = row.try_get(0)?.unwrap_or_default().to_owned();
            continue;
        }
        // A client's server may answer with fewer columns than were asked for.
        let text = |at: usize| row.try_get(at).ok().flatten();
        let applied = || {
            Some(AppliedMigration {
                version: text(0)?.parse().ok()?,
                checksum: hex::decode(text(1)?).ok()?,
                success: text(2)? == "t",
            })
        };
        inspection.applied.extend(applied());
    }
    Ok(inspection)
}

/// Reads the whole schema.
pub async fn read(client: &Client) -> Result<Catalog, tokio_postgres::Error> {
    let sql = format!(
        "{SETUP}
         WITH {EXTENSION}, object AS ({OBJECTS}) SELECT kind, name, md5(definition) FROM object;
         WITH {EXTENSION}, object AS ({OBJECTS}) SELECT {} FROM object",
        digest()
    );
    let mut catalog = Catalog { digest: String::new(), objects: BTreeMap::new() };
    for message in client.simple_query(&sql).await? {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let text = |at: usize| row.try_get(at).ok().flatten().unwrap_or_default().to_owned();
        if row.len() == 1 {
            catalog.digest = text(0);
        } else {
            catalog.objects.insert(SchemaObject { kind: text(0), name: text(1) }, text(2));
        }
    }
    Ok(catalog)
}

/// Order by bytes: the database's own collation may be any.
fn digest() -> &'static str {
    "md5(string_agg(concat_ws(E'\\x1f', kind, name, md5(definition)), E'\\x1e'
                    ORDER BY kind COLLATE \"C\", name COLLATE \"C\"))"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(objects: &[(&str, &str)]) -> Catalog {
        let object = |name: &str| SchemaObject { kind: "table".to_owned(), name: name.to_owned() };
        let objects = objects.iter().map(|(name, digest)| (object(name), (*digest).to_owned())).collect();
        Catalog { digest: String::new(), objects }
    }

    #[test]
    fn a_kept_catalog_is_of_the_servers_own_version() {
        let kept = catalog(&[("a", "1"), ("b", "2")]).to_text(180_001).unwrap();
        assert_eq!(Catalog::from_text(&kept, 180_006), Some(catalog(&[("a", "1"), ("b", "2")])));
        assert_eq!(Catalog::from_text(&kept, 190_000), None);
        assert_eq!(Catalog::from_text("a remark of somebody's", 180_006), None);
    }

    #[test]
    fn what_differs_is_named() {
        let expected = catalog(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let found = expected.differences(&catalog(&[("a", "1"), ("b", "2"), ("d", "1")]));
        let names = |objects: &[SchemaObject]| objects.iter().map(|object| object.name.clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&found.missing), names(&found.changed), names(&found.extra)),
            (vec!["c".to_owned()], vec!["b".to_owned()], vec!["d".to_owned()])
        );
    }
}
