//! Writes the workload's tables as JSON lines, with the column names of its description.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::Context;
use schemas::{
    id::DomainId,
    row::{Cell, Column, DECIMAL_SCALE, Real, Row},
    table::{Snapshot, TableName},
};
use serde_json::{Map, Value};

/// A table of the workload.
struct Dumped {
    file: &'static str,
    /// Schema and name of our table.
    name: (&'static str, &'static str),
    /// Columns by which the rows are sorted.
    key: &'static [&'static str],
    /// Columns of ours that the workload does not have.
    ours: &'static [&'static str],
}

const TABLES: [Dumped; 4] = [
    Dumped { file: "w1.jsonl", name: ("ucr", "pregnancies"), key: &["doc_id"], ours: &["inserted_at"] },
    Dumped { file: "w3.jsonl", name: ("views", "visits_by_month"), key: &["owner_id", "month"], ours: &["updated_at"] },
    Dumped { file: "w4.jsonl", name: ("ucr", "children"), key: &["child_id"], ours: &["doc_id", "inserted_at"] },
    Dumped { file: "w5.jsonl", name: ("views", "districts"), key: &["district_id"], ours: &["updated_at"] },
];

/// Writes all of them.
///
/// # Errors
/// A table is missing or a file cannot be written.
pub(crate) fn tables(snapshot: &Snapshot, domain: &DomainId, directory: &Path) -> anyhow::Result<()> {
    let tables = &snapshot.domains.get(domain).with_context(|| format!("the domain {domain} is not known"))?.tables;
    for Dumped { file, name: (schema, name), key, ours } in TABLES {
        let table =
            tables.get(&TableName::new(schema, name)).with_context(|| format!("there is no {schema}.{name}"))?;
        let key: Vec<usize> = key.iter().filter_map(|column| table.schema.position(column)).collect();
        let mut rows: Vec<Row> = Vec::with_capacity(table.live_rows);
        for segment in table.segments.iter() {
            let live = (0..segment.batch.num_rows()).filter(|row| !segment.dead.is_dead(*row));
            rows.extend(live.map(|row| segment.row(&table.schema, row)));
        }
        rows.sort_by(|a, b| key.iter().map(|at| a.get(*at)).cmp(key.iter().map(|at| b.get(*at))));
        let path = directory.join(file);
        write(&path, &table.schema.columns, ours, &rows)
            .with_context(|| format!("could not write {}", path.display()))?;
    }
    Ok(())
}

fn write(path: &Path, columns: &[Column], ours: &[&str], rows: &[Row]) -> anyhow::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for row in rows {
        let theirs = columns.iter().zip(row.iter()).filter(|(column, _)| !ours.contains(&column.name.as_str()));
        let object: Map<String, Value> = theirs.map(|(column, cell)| (column.name.clone(), json(cell))).collect();
        serde_json::to_writer(&mut out, &object)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

fn json(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Bool(value) => Value::from(*value),
        Cell::Int(value) => Value::from(*value),
        Cell::Decimal(value) => Value::from(*value as f64 / 10f64.powi(DECIMAL_SCALE.into())),
        Cell::Float(Real(value)) => Value::from(*value),
        Cell::Text(text) => Value::from(text.as_str()),
        Cell::Date(days) => {
            let text = schemas::time::format_micros(i64::from(*days) * 86_400_000_000);
            Value::from(text.split_once('T').map_or(text.as_str(), |(date, _)| date))
        }
        Cell::Datetime(micros) => Value::from(schemas::time::format_micros(*micros)),
        Cell::List(items) => items.iter().map(json).collect(),
        Cell::Document(doc) => serde_json::to_value(doc).unwrap_or_default(),
    }
}
