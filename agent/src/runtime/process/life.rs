//! The steps of a unit's life, each of them whole once it has begun. They block, and hold the lock on the units.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::Signal;

use super::cgroup::Cgroup;
use super::directory::{LOG, Units};
use super::kernel::{self, Identity};
use super::members::{self, Traces};
use super::options::{Account, ProcessOptions};
use super::record::{Order, Record, Stage, Started, failed};
use super::slot::{Slot, UNSEEN};
use super::spawn;
use crate::runtime::{Endpoint, Exit, Found, Launch, Owner, RuntimeError, UnitId, UnitState};

/// What the runtime's tasks share.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) owner: Owner,
    pub(super) options: ProcessOptions,
    pub(super) units: Units,
    slots: Mutex<HashMap<UnitId, Arc<Slot>>>,
    said_no_cgroup: AtomicBool,
}

/// Where a unit stands, as far as the process table can tell.
#[derive(Debug)]
pub(super) enum Standing {
    /// Nothing has been started for it.
    NotStarted,
    Running(Order),
    Ended(Order, Exit),
}

impl Life {
    pub(super) fn new(owner: Owner, options: ProcessOptions) -> Self {
        let units = Units::new(&options.directory);
        Self { owner, options, units, slots: Mutex::default(), said_no_cgroup: AtomicBool::new(false) }
    }

    pub(super) fn slot(&self, unit: UnitId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(unit).or_default())
    }

    fn is_known(&self, unit: UnitId) -> bool {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&unit)
    }

    fn forget(&self, unit: UnitId) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&unit);
    }

    /// Makes the unit's directory, or finds it.
    pub(super) fn place(&self, unit: UnitId) -> Result<Record, RuntimeError> {
        let account = Account::resolve(self.options.user.as_ref())?;
        let locked = self.units.lock()?;
        if let Some(mut record) = self.units.find(&self.owner, unit)? {
            if record.stage == Stage::Placed {
                locked.mend(&mut record, &account)?;
            }
            self.slot(unit);
            return Ok(record);
        }
        if self.units.of(unit).exists() {
            return Err(failed(format!("{} belongs to another fleet or node", self.units.of(unit).display())));
        }
        let record = locked.make(self.owner, unit, &account)?;
        self.slot(unit);
        Ok(record)
    }

    /// Starts the unit's process, unless that has been done.
    pub(super) fn launch(&self, launch: &Launch) -> Result<Record, RuntimeError> {
        let unit = launch.unit;
        let program = self.options.program(launch.engine)?;
        spawn::check(launch)?;
        let account = Account::resolve(self.options.user.as_ref())?;
        let boot_id = boot_id()?;
        let locked = self.units.lock()?;
        let mut record = self.units.find(&self.owner, unit)?.ok_or(RuntimeError::NotFound(unit))?;
        let slot = self.slot(unit);
        if slot.stopping.load(Ordering::SeqCst) {
            return Err(RuntimeError::Start("it is being stopped".to_owned()));
        }
        if !matches!(self.standing(&mut record)?, Standing::NotStarted) {
            return Ok(record);
        }
        if members::main_of(&spawn::mark(&self.owner, unit), account.uid).map_err(table)?.is_some() {
            return Err(RuntimeError::Start("processes of it are left from before: stop it first".to_owned()));
        }
        let directory = self.units.of(unit);
        locked.mend(&mut record, &account)?;
        let order = Order::new(launch.engine, launch.spec_hash.clone(), account.uid);
        record.stage = Stage::Launching(order.clone());
        record.write(&directory)?;
        let spawned = spawn::spawn(&directory, &record.socket_directory, program, &account, &self.owner, launch);
        let process = match spawned {
            Ok(process) => process,
            Err(error) => {
                record.stage = Stage::Placed;
                record.write(&directory)?;
                return Err(error);
            }
        };
        let cgroup = self.group(unit, process);
        let started = Started { process, boot_id, cgroup: cgroup.map(|group| group.path().to_owned()) };
        slot.watch(directory.clone(), &started);
        record.stage = Stage::Launched(order, started);
        record.write(&directory)?;
        Ok(record)
    }

    fn group(&self, unit: UnitId, process: Identity) -> Option<Cgroup> {
        let Owner { fleet, node, .. } = self.owner;
        let UnitId { placement, epoch } = unit;
        let name = format!("{fleet}-{node}-{}-{}-{epoch}", placement.deployment, placement.ordinal);
        match Cgroup::make(&name).and_then(|group| group.add(process.pid).map(|()| group)) {
            Ok(group) => Some(group),
            Err(error) => {
                if !self.said_no_cgroup.swap(true, Ordering::Relaxed) {
                    tracing::debug!(%error, "engines run without control groups of their own");
                }
                None
            }
        }
    }

    /// Where a unit stands. One that was being started when its starter died is found by its mark, and written down.
    fn standing(&self, record: &mut Record) -> Result<Standing, RuntimeError> {
        let unit = record.unit();
        let directory = self.units.of(unit);
        let slot = self.slot(unit);
        if let Stage::Launching(order) = &record.stage {
            let Some(process) = members::main_of(&spawn::mark(&self.owner, unit), order.uid).map_err(table)? else {
                return Ok(Standing::NotStarted);
            };
            let cgroup = self.group(unit, process).map(|group| group.path().to_owned());
            record.stage = Stage::Launched(order.clone(), Started { process, boot_id: boot_id()?, cgroup });
            record.write(&directory)?;
        }
        let Stage::Launched(order, started) = &record.stage else { return Ok(Standing::NotStarted) };
        if started.boot_id != boot_id()? {
            slot.ended(UNSEEN);
            return Ok(Standing::Ended(order.clone(), UNSEEN));
        }
        if kernel::runs(started.process) {
            slot.watch(directory, started);
            return Ok(Standing::Running(order.clone()));
        }
        let exit = slot.settle(&directory, started);
        slot.ended(exit);
        Ok(Standing::Ended(order.clone(), exit))
    }

    /// All units of the owner. Places of an earlier process at which nothing was started are removed.
    pub(super) fn found(&self) -> Result<Vec<Found>, RuntimeError> {
        let locked = self.units.lock()?;
        let mut found = Vec::new();
        for mut record in locked.records()? {
            if !record.is_of(&self.owner) {
                continue;
            }
            let unit = record.unit();
            let known = self.is_known(unit);
            let (order, state) = match self.standing(&mut record)? {
                Standing::Running(order) => (order, UnitState::Running(Endpoint::Unix(record.socket()))),
                Standing::Ended(order, exit) => (order, UnitState::Ended(exit)),
                Standing::NotStarted if known => continue,
                Standing::NotStarted => {
                    locked.remove(&record)?;
                    self.forget(unit);
                    continue;
                }
            };
            let Some(engine) = order.engine() else {
                tracing::warn!(%unit, "a unit with an unknown kind of engine is left alone");
                continue;
            };
            let spec_hash = order.spec_hash.clone();
            found.push(Found { unit, generation: record.generation, spec_hash, engine, state, image_digest: None });
        }
        Ok(found)
    }

    /// The unit's slot, once its end is known there or watched for.
    pub(super) fn attach(&self, unit: UnitId) -> Result<Arc<Slot>, RuntimeError> {
        let _locked = self.units.lock()?;
        let mut record = self.units.find(&self.owner, unit)?.ok_or(RuntimeError::NotFound(unit))?;
        match self.standing(&mut record)? {
            Standing::NotStarted => Err(RuntimeError::NotFound(unit)),
            Standing::Running(_) | Standing::Ended(..) => Ok(self.slot(unit)),
        }
    }

    /// Tells the unit's main process to end. `None`: it does not run.
    pub(super) fn tell(&self, unit: UnitId) -> Result<Option<Arc<Slot>>, RuntimeError> {
        let _locked = self.units.lock()?;
        let Some(mut record) = self.units.find(&self.owner, unit)? else { return Ok(None) };
        let slot = self.slot(unit);
        slot.stopping.store(true, Ordering::SeqCst);
        let Standing::Running(_) = self.standing(&mut record)? else { return Ok(None) };
        // What runs beside it is noted now: once it has ended, nothing may tell any more that they belonged together.
        self.members(&slot, unit, Some(&record))?;
        if let Stage::Launched(_, started) = &record.stage
            && !slot.told.swap(true, Ordering::SeqCst)
        {
            kernel::signal(started.process, Signal::TERM).map_err(signalling)?;
        }
        Ok(Some(slot))
    }

    /// Ends everything that belongs to the unit at once, and says how many processes there were.
    pub(super) fn kill(&self, unit: UnitId) -> Result<usize, RuntimeError> {
        let _locked = self.units.lock()?;
        let mut record = self.units.find(&self.owner, unit)?;
        if let Some(record) = &mut record {
            self.standing(record)?;
        }
        let slot = self.slot(unit);
        slot.kills();
        let members = self.members(&slot, unit, record.as_ref())?;
        for member in &members {
            kernel::signal(*member, Signal::KILL).map_err(signalling)?;
        }
        Ok(members.len())
    }

    /// Removes what is left of a unit that has ended.
    pub(super) fn remove(&self, unit: UnitId) -> Result<(), RuntimeError> {
        let locked = self.units.lock()?;
        if let Some(mut record) = self.units.find(&self.owner, unit)? {
            if let Standing::Running(_) = self.standing(&mut record)? {
                return Err(failed(format!("{unit} runs although it was stopped")));
            }
            // Whoever waits for its end learns of it before it is forgotten.
            let slot = self.slot(unit);
            if slot.exit().borrow().is_none() {
                slot.ended(UNSEEN);
            }
            if let Stage::Launched(_, Started { cgroup: Some(group), .. }) = &record.stage {
                Cgroup::at(group.clone()).remove();
            }
            locked.remove(&record)?;
        }
        self.forget(unit);
        Ok(())
    }

    fn members(&self, slot: &Slot, unit: UnitId, record: Option<&Record>) -> Result<Vec<Identity>, RuntimeError> {
        let mut known = slot.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|process| kernel::runs(*process));
        let mut traces = Traces {
            mark: spawn::mark(&self.owner, unit),
            uid: rustix::process::geteuid().as_raw(),
            // A directory without a record of ours can be somebody else's.
            log: record.and_then(|_| file(&self.units.of(unit).join(LOG))),
            known: known.clone(),
            ..Traces::default()
        };
        match record.map(|record| &record.stage) {
            Some(Stage::Launched(order, started)) => {
                traces.uid = order.uid;
                if started.boot_id == boot_id()? {
                    traces.main = Some(started.process);
                    traces.cgroup = started.cgroup.clone().map(Cgroup::at);
                }
            }
            Some(Stage::Launching(order)) => traces.uid = order.uid,
            Some(Stage::Placed) | None => {
                if let Ok(account) = Account::resolve(self.options.user.as_ref()) {
                    traces.uid = account.uid;
                }
            }
        }
        let members = members::find(&traces).map_err(table)?;
        *known = members.clone();
        Ok(members)
    }
}

fn file(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|about| (about.dev(), about.ino()))
}

fn boot_id() -> Result<String, RuntimeError> {
    kernel::boot_id().map_err(|source| RuntimeError::Io { what: "reading which boot of the machine this is", source })
}

fn table(source: std::io::Error) -> RuntimeError {
    RuntimeError::Io { what: "reading the process table", source }
}

fn signalling(source: std::io::Error) -> RuntimeError {
    RuntimeError::Io { what: "sending a signal to an engine", source }
}
