//! The operators of a worker's graph, wired to its state.

use std::{collections::BTreeMap, rc::Rc};

use differential_dataflow::{AsCollection, VecCollection};
use schemas::row::Row;
use timely::{
    container::CapacityContainerBuilder,
    dataflow::{
        Scope, StreamVec,
        channels::pact::{Exchange, Pipeline},
        operators::{Capability, Concat, ConnectLoop, Feedback, OkErr, Operator, vec::Map},
    },
};
use udf::aggregate_view::MAX_JOINS;

use super::{Arrival, RowWalk, State, round_zero, tick_of};
use crate::{
    aggregate::{JoinKey, Joined, Next},
    evaluate::{Changed, Reach, RowChange, Said},
    relation::{Answer, Demand, Relations, Telling},
    rows::{Difference, Reader},
    table::walk,
    view::ViewNo,
};
use schemas::position::Tick;

type Stream<'s, D> = StreamVec<'s, u64, D>;

/// What two inputs brought for each round, with the capability to answer it.
type Rounds<A, B> = BTreeMap<u64, (Capability<u64>, Vec<A>, Vec<B>)>;

/// Arrivals in, row changes out: documents, evaluation, and the loop through related documents.
pub(super) fn evaluation<'s>(
    scope: Scope<'s, u64>,
    arriving: Stream<'s, Arrival>,
    state: &State,
) -> Stream<'s, RowChange> {
    let (changed, related) = documents(arriving, state);
    let (handle, answers) = scope.feedback::<Vec<Answer>>(1);
    let (rows, demands) = evaluate(changed, answers, state);
    relate(related, demands, state).connect_loop(handle);
    rows
}

/// Keeps the present documents; says which changed, and what each contributes to.
fn documents<'s>(arriving: Stream<'s, Arrival>, state: &State) -> (Stream<'s, Changed>, Stream<'s, Telling>) {
    let (documents, relations) = (Rc::clone(&state.documents), Rc::clone(&state.relations));
    arriving
        .unary(Pipeline, "Documents", move |_, _| {
            move |input, output| {
                input.for_each(|capability, arrivals| {
                    let mut session = output.session(&capability);
                    let mut documents = documents.borrow_mut();
                    let relations = relations.borrow();
                    for arrival in arrivals.drain(..) {
                        match arrival {
                            Arrival::Visit { view, domain, kind, start, end } => {
                                for (key, _) in documents.slice(&domain, kind, start, end) {
                                    session.give(Ok(Changed { key: key.clone(), reach: Reach::Only(view) }));
                                }
                            }
                            Arrival::Tell { worker, most } => session.give(Err(Telling::More { worker, most })),
                            Arrival::Contribute { domain, relation, start, end } => {
                                let kind = relation.contributor();
                                for (key, version) in
                                    kind.iter().flat_map(|kind| documents.slice(&domain, *kind, start, end))
                                {
                                    let mut say = |related| session.give(Err(Telling::Changed(related)));
                                    Relations::contribute(key, version, relation, &mut say);
                                }
                            }
                            Arrival::Upsert { key, version, stamp } => {
                                let Some(before) = documents.upsert(&key, stamp, version.clone()) else { continue };
                                let mut say = |related| session.give(Err(Telling::Changed(related)));
                                relations.changes(&key, before.as_ref(), version.as_ref(), &mut say);
                                session.give(Ok(Changed { key, reach: Reach::Every { before } }));
                            }
                        }
                    }
                });
            }
        })
        .container::<Vec<Result<Changed, Telling>>>()
        .ok_err(|split| split)
}

/// Runs the evaluator, round by round.
fn evaluate<'s>(
    changed: Stream<'s, Changed>,
    answers: Stream<'s, Answer>,
    state: &State,
) -> (Stream<'s, RowChange>, Stream<'s, Demand>) {
    let evaluator = Rc::clone(&state.evaluator);
    let home = Exchange::new(|answer: &Answer| answer.subject.partition());
    changed
        .binary_frontier(answers, Pipeline, home, "Evaluate", move |_, _| {
            let mut rounds: Rounds<Changed, Answer> = BTreeMap::new();
            move |(changed, changed_frontier), (answers, answers_frontier), output| {
                changed.for_each(|capability, data| {
                    let Some(capability) = capability.retain_least(output.output_index()) else { return };
                    let round = rounds.entry(*capability.time());
                    round.or_insert_with(|| (capability, Vec::new(), Vec::new())).1.append(data);
                });
                answers.for_each(|capability, data| {
                    let Some(capability) = capability.retain_least(output.output_index()) else { return };
                    let round = rounds.entry(*capability.time());
                    round.or_insert_with(|| (capability, Vec::new(), Vec::new())).2.append(data);
                });
                while let Some(round) = rounds.first_entry() {
                    if changed_frontier.less_equal(round.key()) || answers_frontier.less_equal(round.key()) {
                        break;
                    }
                    let (capability, changed, answers) = round.remove();
                    let mut session = output.session(&capability);
                    evaluator.borrow_mut().round(changed, answers, &mut |said| {
                        session.give(match said {
                            Said::Rows(rows) => Ok(rows),
                            Said::Demand(demand) => Err(demand),
                        });
                    });
                }
            }
        })
        .container::<Vec<Result<RowChange, Demand>>>()
        .ok_err(|said| said)
}

/// Answers demands from the documents that contribute, and tells subjects of changes.
fn relate<'s>(related: Stream<'s, Telling>, demands: Stream<'s, Demand>, state: &State) -> Stream<'s, Answer> {
    let relations = Rc::clone(&state.relations);
    let related_home = Exchange::new(Telling::partition);
    let demand_home = Exchange::new(|demand: &Demand| demand.relation.partition());
    related.binary_frontier(demands, related_home, demand_home, "Relate", move |_, _| {
        let mut rounds: Rounds<Telling, Demand> = BTreeMap::new();
        move |(related, related_frontier), (demands, demands_frontier), output| {
            related.for_each(|capability, data| {
                let Some(capability) = capability.retain_least(output.output_index()) else { return };
                let round = rounds.entry(*capability.time());
                round.or_insert_with(|| (capability, Vec::new(), Vec::new())).1.append(data);
            });
            demands.for_each(|capability, data| {
                let Some(capability) = capability.retain_least(output.output_index()) else { return };
                let round = rounds.entry(*capability.time());
                round.or_insert_with(|| (capability, Vec::new(), Vec::new())).2.append(data);
            });
            while let Some(round) = rounds.first_entry() {
                if related_frontier.less_equal(round.key()) || demands_frontier.less_equal(round.key()) {
                    break;
                }
                let (capability, related, demands) = round.remove();
                let mut session = output.session(&capability);
                let mut tell = |answer| session.give(answer);
                let mut relations = relations.borrow_mut();
                for telling in related {
                    match telling {
                        Telling::Changed(related) => relations.relate(related, &mut tell),
                        Telling::More { most, .. } => relations.tell_more(most, &mut tell),
                    }
                }
                demands.into_iter().for_each(|demand| relations.demand(demand, &mut tell));
            }
        }
    })
}

/// Row changes in; the tables are written, and aggregate views follow. The stream that leaves carries nothing but the
/// frontier: when it has passed a tick, every table stands at that tick.
pub(super) fn aggregation<'s>(
    rows: Stream<'s, RowChange>,
    nudged: Stream<'s, ()>,
    state: &State,
) -> Option<Stream<'s, ()>> {
    let (base, index) = tables(rows, nudged, state);
    let aggregates = Rc::clone(&state.aggregates);
    let keyed = index.flat_map(move |(difference, time, diff): (Difference, u64, isize)| {
        let Reader::Index(no) = difference.reader else { return None };
        let key = aggregates.borrow().index_key(no, &difference.row, diff)?;
        Some(((key, difference.row), time, diff))
    });
    let indexed: VecCollection<'s, u64, (JoinKey, Row), isize> = keyed.as_collection();
    let indexed = indexed.arrange_by_key();
    let mut open: VecCollection<'s, u64, (ViewNo, Joined), isize> = base
        .flat_map(|(difference, time, diff): (Difference, u64, isize)| match difference.reader {
            Reader::Base(view) => Some(((view, vec![difference.row]), time, diff)),
            Reader::Index(_) => None,
        })
        .as_collection();
    let mut done: Option<Stream<'s, Grouped>> = None;
    for level in 0..=MAX_JOINS {
        let aggregates = Rc::clone(&state.aggregates);
        let (joining, finished) = open
            .inner
            .flat_map(move |((view, rows), time, diff)| match aggregates.borrow().next(view, &rows, diff) {
                Next::Join(key) => Some(Ok(((key, (view, rows)), time, diff))),
                Next::Done => Some(Err(((view, rows), time, diff))),
                Next::Drop => None,
            })
            .container::<Vec<Result<_, Grouped>>>()
            .ok_err(|split| split);
        done = Some(match done {
            Some(done) => done.concat(finished),
            None => finished,
        });
        if level == MAX_JOINS {
            break;
        }
        let joining: VecCollection<'s, u64, (JoinKey, (ViewNo, Joined)), isize> = joining.as_collection();
        open = joining.arrange_by_key().join_core(indexed.clone(), |_, (view, rows), row| {
            Some((*view, rows.iter().chain([row]).cloned().collect::<Joined>()))
        });
    }
    done.map(|joined| groups(joined, state))
}

/// A joined row of an aggregate view, as a difference.
type Grouped = ((ViewNo, Joined), u64, isize);

type Differences<'s> = Stream<'s, (Difference, u64, isize)>;

/// Writes the row tables, one tick at a time, and gives their differences to readers.
fn tables<'s>(
    rows: Stream<'s, RowChange>,
    nudged: Stream<'s, ()>,
    state: &State,
) -> (Differences<'s>, Differences<'s>) {
    let state = state.clone();
    rows.binary_frontier(nudged, Pipeline, Pipeline, "Tables", move |_, _| {
        let mut ticks: BTreeMap<Tick, (Capability<u64>, Vec<RowChange>)> = BTreeMap::new();
        move |(rows, rows_frontier), (nudges, nudges_frontier), output| {
            rows.for_each(|capability, data| {
                let Some(capability) = capability.retain_least(output.output_index()) else { return };
                let tick = ticks.entry(tick_of(*capability.time()));
                tick.or_insert_with(|| (capability, Vec::new())).1.append(data);
            });
            nudges.for_each(|capability, _| {
                let Some(capability) = capability.retain_least(output.output_index()) else { return };
                ticks.entry(tick_of(*capability.time())).or_insert_with(|| (capability, Vec::new()));
            });
            while let Some(first) = ticks.first_entry() {
                let end = round_zero(Tick(first.key().0 + 1));
                if rows_frontier.less_than(&end) || nudges_frontier.less_than(&end) {
                    break;
                }
                let (tick, (capability, changes)) = first.remove_entry();
                let time = *capability.time();
                let mut session = output.session(&capability);
                let mut give = |difference: Difference| {
                    let diff = difference.diff;
                    session.give((difference, time, diff));
                };
                for RowWalk { table, feed, diff, start, end } in state.row_walks.borrow_mut().drain(..) {
                    feed.give(&walk(&table, start, end), diff, &mut give);
                }
                if let Err(error) = state.tables.borrow_mut().apply(tick, changes, &mut give) {
                    state.failed.borrow_mut().get_or_insert(error);
                }
            }
        }
    })
    .container::<Vec<(Difference, u64, isize)>>()
    .ok_err(|given| match given.0.reader {
        Reader::Base(_) => Ok(given),
        Reader::Index(_) => Err(given),
    })
}

/// Groups joined rows and writes the aggregate views' tables.
fn groups<'s>(joined: Stream<'s, Grouped>, state: &State) -> Stream<'s, ()> {
    let state = state.clone();
    let aggregates = Rc::clone(&state.aggregates);
    let home = Exchange::new(move |((view, rows), ..): &Grouped| {
        use std::hash::{Hash, Hasher};
        let mut hasher = siphasher::sip::SipHasher13::new();
        (view, aggregates.borrow().group(*view, rows)).hash(&mut hasher);
        hasher.finish()
    });
    joined.unary_frontier::<CapacityContainerBuilder<Vec<()>>, _, _, _>(home, "Groups", move |_, _| {
        let mut ticks: BTreeMap<Tick, (Capability<u64>, Vec<Grouped>)> = BTreeMap::new();
        move |(input, frontier), output| {
            input.for_each(|capability, data| {
                let Some(capability) = capability.retain_least(output.output_index()) else { return };
                let tick = ticks.entry(tick_of(*capability.time()));
                tick.or_insert_with(|| (capability, Vec::new())).1.append(data);
            });
            while let Some(first) = ticks.first_entry() {
                if frontier.less_than(&round_zero(Tick(first.key().0 + 1))) {
                    break;
                }
                let (tick, (_capability, differences)) = first.remove_entry();
                let mut aggregates = state.aggregates.borrow_mut();
                for ((view, rows), _, diff) in &differences {
                    aggregates.add(*view, rows, *diff);
                }
                let mut tables = state.tables.borrow_mut();
                for (view, groups) in aggregates.changed(state.stamp.get()) {
                    if let Err(error) = tables.replace(tick, view, &groups) {
                        state.failed.borrow_mut().get_or_insert(error);
                    }
                }
            }
        }
    })
}
