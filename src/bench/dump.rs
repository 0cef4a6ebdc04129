//! Writes the workload's tables as JSON lines, with the column names of its description.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::Context;
use schemas::{
    id::DomainId,
    row::{Cell, Column, ColumnType, DECIMAL_SCALE, Real, Row},
    table::{Snapshot, TableName},
};
use serde_json::{Map, Value};

/// A table of the workload: the file's name, where its rows are, the key by which they are sorted, and columns of ours
/// that it does not have.
const TABLES: [(&str, (&str, &str), &[&str], &[&str]); 4] = [
    ("w1.jsonl", ("ucr", "pregnancies"), &["doc_id"], &["inserted_at"]),
    ("w3.jsonl", ("views", "visits_by_month"), &["owner_id", "month"], &["updated_at"]),
    ("w4.jsonl", ("ucr", "children"), &["child_id"], &["doc_id", "inserted_at"]),
    ("w5.jsonl", ("views", "districts"), &["district_id"], &["updated_at"]),
];

/// Writes all of them.
///
/// # Errors
/// A table is missing or a file cannot be written.
pub(crate) fn tables(snapshot: &Snapshot, domain: &DomainId, directory: &Path) -> anyhow::Result<()> {
    let tables = &snapshot.domains.get(domain).with_context(|| format!("the domain {domain} is not known"))?.tables;
    for (file, (schema, name), key, ours) in TABLES {
        let table =
            tables.get(&TableName::new(schema, name)).with_context(|| format!("there is no {schema}.{name}"))?;
        let key: Vec<usize> = key.iter().filter_map(|column| table.schema.position(column)).collect();
        let mut rows: Vec<Row> = Vec::with_capacity(table.live_rows);
        for segment in table.segments.iter() {
            let live = (0..segment.batch.num_rows()).filter(|row| !segment.dead.is_dead(*row));
            rows.extend(live.map(|row| table.schema.row(&segment.batch, row)));
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
        let object: Map<String, Value> =
            theirs.map(|(column, cell)| (column.name.clone(), json(column.column_type, cell))).collect();
        serde_json::to_writer(&mut out, &object)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

fn json(column: ColumnType, cell: &Cell) -> Value {
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
        Cell::List(items) => items.iter().map(|item| json(column, item)).collect(),
    }
}
