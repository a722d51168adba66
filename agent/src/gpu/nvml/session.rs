//! Reading all GPUs, from a library that has been opened until it is closed.

use std::sync::Arc;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, EventSet, Nvml};

use super::super::sample::{Figures, Gpu, GpuMemory, GpuProcess, GpuSample, Health, Origin, Xids};
use super::super::source::MOST_GPUS;
use crate::machine::Memory;

/// The processes of a GPU after these are not told.
const MOST_PROCESSES: usize = 256;

/// Events of a GPU that are taken from the driver at one time; the others wait for the next.
const MOST_EVENTS: usize = 64;

const NAME_BYTES: usize = 256;

/// `NVML_ERROR_GPU_NOT_FOUND`, which the wrapper has no name for.
const GPU_NOT_FOUND: u32 = 28;

/// An open library, and the GPUs that it had when it was opened. It counts them only then, and so do we.
pub(super) struct Session<'nvml> {
    nvml: &'nvml Nvml,
    gpus: Vec<Known<'nvml>>,
}

/// What is kept of a GPU from one reading to the next.
struct Known<'nvml> {
    facts: Arc<Gpu>,
    /// Whether it could ever be reached, so that its facts are its own.
    reached: bool,
    /// Each GPU has a set of its own: an event of a lost GPU names a device that can no longer say which it is.
    events: Option<EventSet<'nvml>>,
    xids: Option<Xids>,
}

impl<'nvml> Session<'nvml> {
    pub fn open(nvml: &'nvml Nvml) -> Result<Self, NvmlError> {
        let count = nvml.device_count()?.min(MOST_GPUS);
        Ok(Self { nvml, gpus: (0..count).map(Known::new).collect() })
    }

    /// An error is one of the library as a whole.
    pub fn read(&mut self) -> Result<Vec<GpuSample>, NvmlError> {
        self.gpus.iter_mut().map(|gpu| gpu.read(self.nvml)).collect()
    }
}

impl<'nvml> Known<'nvml> {
    fn new(index: u32) -> Self {
        let facts = Gpu { index, uuid: None, name: "NVIDIA GPU".to_owned(), memory_total: None, origin: Origin::Nvml };
        Self { facts: Arc::new(facts), reached: false, events: None, xids: None }
    }

    fn read(&mut self, nvml: &'nvml Nvml) -> Result<GpuSample, NvmlError> {
        let health = match self.figures(nvml) {
            Ok(figures) => Health::Ok(figures),
            Err(error) if concerns_the_library(&error) => return Err(error),
            Err(error) if is_loss(&error) => Health::Lost(error.to_string()),
            Err(error) => Health::Unknown(error.to_string()),
        };
        self.take_events();
        Ok(GpuSample { gpu: self.facts.clone(), health, xids: self.xids })
    }

    /// Stops at the first error that says something of the whole GPU: each further call to a lost one can take seconds.
    fn figures(&mut self, nvml: &'nvml Nvml) -> Result<Figures, NvmlError> {
        let device = nvml.device_by_index(self.facts.index)?;
        if !self.reached {
            self.reach(nvml, &device)?;
        }
        let (memory, origin) = memory(&device)?;
        let memory_total = memory.map(|memory| memory.total);
        if (self.facts.memory_total, self.facts.origin) != (memory_total, origin) {
            self.facts = Arc::new(Gpu { memory_total, origin, ..Gpu::clone(&self.facts) });
        }
        Ok(Figures {
            utilization: if_told(device.utilization_rates())?.and_then(|rates| u8::try_from(rates.gpu.min(100)).ok()),
            memory,
            temperature: if_told(device.temperature(TemperatureSensor::Gpu))?,
            power: if_told(device.power_usage())?,
            processes: processes(nvml, &device)?,
            ecc_corrected: if_told(device.total_ecc_errors(MemoryError::Corrected, EccCounter::Volatile))?,
            ecc_uncorrected: if_told(device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile))?,
        })
    }

    fn reach(&mut self, nvml: &'nvml Nvml, device: &Device<'nvml>) -> Result<(), NvmlError> {
        let uuid = if_told(device.uuid())?;
        let name = if_told(device.name())?.unwrap_or_else(|| self.facts.name.clone());
        self.facts = Arc::new(Gpu { uuid, name, ..Gpu::clone(&self.facts) });
        let set = nvml.create_event_set().and_then(|set| {
            device.register_events(EventTypes::CRITICAL_XID_ERROR, set).map_err(|refused| refused.error)
        });
        self.events = if_told(set)?;
        self.xids = self.events.as_ref().map(|_| Xids::default());
        self.reached = true;
        Ok(())
    }

    fn take_events(&mut self) {
        let (Some(events), Some(xids)) = (&self.events, &mut self.xids) else { return };
        for _ in 0..MOST_EVENTS {
            // A wait of zero is not said to be none.
            let Ok(event) = events.wait(1) else { return };
            if let Some(xid) = event.event_data {
                xids.count = xids.count.saturating_add(1);
                xids.last = Some(match xid {
                    XidError::Value(value) => value,
                    XidError::Unknown => 999,
                });
            }
        }
    }
}

/// A GPU without memory of its own uses the machine's.
fn memory(device: &Device<'_>) -> Result<(Option<GpuMemory>, Origin), NvmlError> {
    match device.memory_info() {
        Ok(own) if own.total > 0 => {
            Ok((Some(GpuMemory { total: own.total, used: own.used, free: own.free }), Origin::Nvml))
        }
        Ok(_) | Err(NvmlError::NotSupported) => {
            let shared = Memory::read().map(|machine| GpuMemory {
                total: machine.total,
                used: machine.used(),
                free: machine.available,
            });
            Ok((shared, Origin::Unified))
        }
        Err(error) => Err(error),
    }
}

fn processes(nvml: &Nvml, device: &Device<'_>) -> Result<Option<Vec<GpuProcess>>, NvmlError> {
    let Some(found) = if_told(device.running_compute_processes())? else { return Ok(None) };
    let told = found.into_iter().take(MOST_PROCESSES).map(|process| GpuProcess {
        pid: process.pid,
        memory: match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        },
        name: nvml.sys_process_name(process.pid, NAME_BYTES).ok().filter(|name| !name.is_empty()),
    });
    Ok(Some(told.collect()))
}

/// An error that concerns one figure alone means that it is not told.
fn if_told<T>(result: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if concerns_the_library(&error) || is_loss(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

fn is_loss(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::GpuLost
            | NvmlError::ResetRequired
            | NvmlError::IrqIssue
            | NvmlError::InsufficientPower
            | NvmlError::UnexpectedVariant(GPU_NOT_FOUND)
    )
}

/// The driver was unloaded, or replaced by another version.
fn concerns_the_library(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::Uninitialized
            | NvmlError::DriverNotLoaded
            | NvmlError::LibraryNotFound
            | NvmlError::LibRmVersionMismatch
    )
}
