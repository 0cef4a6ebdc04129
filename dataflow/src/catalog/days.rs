//! The change of the day: successors, and the turn of a domain to another day.

use std::{collections::BTreeMap, sync::Arc};

use hashbrown::HashMap;
use schemas::id::DomainId;

use super::{Catalog, Definition, Installed, Made, Phase, inputs};
use crate::checkpoint::ViewKey;
use crate::view::{Command, Day, Logic, ViewNo};

impl Catalog {
    /// Today, and the day that successors are built for: the next one, once it is near.
    pub(super) const fn today_and_next(&self) -> (Day, Day) {
        (Day::of(self.now), Day::of(self.now.saturating_add(self.lead)))
    }

    /// The day that a domain has to turn to, if its rows are of `day`.
    pub(super) fn due(&self, day: Day) -> Option<Day> {
        let (today, next) = self.today_and_next();
        let due = if day == today { next } else { today };
        // A clock that is set back a little takes nobody back to yesterday.
        (day != next).then_some(due)
    }

    /// Takes in the time. Returns commands that install the successors that are due, and retire those of another day.
    pub(crate) fn prepare(&mut self, now: i64) -> Vec<Command> {
        let before = self.today_and_next();
        self.now = now;
        let mut commands = Vec::new();
        if before != self.today_and_next() {
            self.unsettled = true;
        } else if !self.unprepared {
            return commands;
        }
        let due: BTreeMap<DomainId, Option<Day>> =
            self.days.iter().map(|(domain, day)| (domain.clone(), self.due(*day))).collect();
        let Self { definitions, instances, .. } = &mut *self;
        let day_of = |no: ViewNo| instances.get(&no).and_then(|installed| installed.instance.day);
        let mut gone = Vec::new();
        let mut missing = Vec::new();
        for (key, definition) in definitions {
            let due = due.get(&key.0).copied().flatten();
            let live = definition.live.filter(|live| turns(instances, *live));
            gone.extend(definition.successor.take_if(|no| live.is_none() || day_of(*no) != due));
            if let (Some(live), Some(day), None) = (live, due, definition.successor) {
                missing.push((key.clone(), live, day));
            }
        }
        self.retire(gone, &mut commands);
        // Aggregate views read the successors of their sources, which are there first.
        missing.sort_by_key(|(_, live, _)| self.reads(*live).next().is_some());
        for (key, live, day) in missing {
            self.succeed(&key, live, day, &mut commands);
        }
        self.unprepared = false;
        commands
    }

    /// Installs the successor of a live instance.
    fn succeed(&mut self, key: &ViewKey, live: ViewNo, day: Day, commands: &mut Vec<Command>) {
        let Some(instance) = self.instances.get(&live).map(|installed| Arc::clone(&installed.instance)) else { return };
        let mut logic = instance.logic.clone();
        if let Logic::Groups { inputs, .. } = &mut logic {
            let of_domain = self.definitions.iter().filter(|((domain, ..), _)| *domain == key.0);
            let successors: HashMap<ViewNo, ViewNo> =
                of_domain.filter_map(|(_, definition)| Some((definition.live?, definition.successor?))).collect();
            for (input, _) in inputs {
                *input = successors.get(input).copied().unwrap_or(*input);
            }
        }
        let origin = self.instances.get(&live).map(|installed| installed.origin.clone()).unwrap_or_default();
        let made = Made { logic, schema: Arc::clone(&instance.schema), day: Some(day) };
        let no = self.install(key, made, origin);
        // The day does not wait for other builds.
        self.begin(no, commands);
        if let Some(definition) = self.definitions.get_mut(key) {
            definition.successor = Some(no);
        }
    }

    /// Lets a domain turn to `day`, if all its successors are complete.
    pub(super) fn turn(&mut self, domain: &DomainId, day: Day, commands: &mut Vec<Command>) {
        let Self { definitions, instances, .. } = &mut *self;
        let complete = |no: ViewNo| {
            let installed = instances.get(&no);
            installed.is_some_and(|held| held.phase == Phase::Complete && held.instance.day == Some(day))
        };
        let of_domain = || definitions.iter().filter(|((of, ..), _)| of == domain);
        if of_domain()
            .any(|(_, held)| held.live.is_some_and(|no| turns(instances, no)) && !held.successor.is_some_and(complete))
        {
            return;
        }
        // What is being built was begun for the day that is over.
        let begun = |held: &Definition| [held.building, held.preview].into_iter().flatten();
        let building = of_domain().filter(|(_, held)| begun(held).any(|no| turns(instances, no)));
        let again: Vec<ViewKey> = building.map(|(key, _)| key.clone()).collect();
        let mut gone = Vec::new();
        for definition in definitions.iter_mut().filter(|((of, ..), _)| of == domain).map(|(_, definition)| definition)
        {
            if let Some(successor) = definition.successor.take() {
                commands.push(Command::Publish(successor));
                gone.extend(definition.live.replace(successor));
            }
        }
        self.days.insert(domain.clone(), day);
        self.dirty.insert(domain.clone());
        self.unprepared = true;
        for key in again {
            self.build(&key, commands);
        }
        self.retire(gone, commands);
    }
}

/// True if the rows of an instance change with the day; those of an aggregate view that has lost a source stay as they
/// are.
pub(super) fn turns(instances: &HashMap<ViewNo, Installed>, no: ViewNo) -> bool {
    let kept = |no: ViewNo| instances.get(&no).filter(|installed| installed.phase != Phase::Frozen);
    kept(no).is_some_and(|installed| installed.instance.day.is_some())
        && inputs(instances, no).all(|input| kept(input).is_some())
}
