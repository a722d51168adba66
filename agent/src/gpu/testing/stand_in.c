/*
 * Stands in for NVIDIA's management library: the same symbols, loaded in the same way. What it says is read from the file
 * STEERING (set when it is compiled) at every call, as lines of "key number"; a key that is not there has its default.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

typedef int status;
typedef struct device { unsigned index; } *device;
typedef struct event_set { device device; long told; } *event_set;

struct memory { unsigned version; unsigned long long total, reserved, free, used; };
struct utilization { unsigned gpu, memory; };
struct process { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };
struct event { device device; unsigned long long type, data; unsigned gpu_instance, compute_instance; };

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, GPU_IS_LOST = 15 };
enum { GPUS = 8 };

static struct device devices[GPUS] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};
static struct event_set sets[GPUS];
static unsigned sets_made;

static long steer(const char *key, long otherwise) {
    char name[64];
    long value;
    FILE *file = fopen(STEERING, "r");
    if (!file)
        return otherwise;
    while (fscanf(file, "%63s %ld", name, &value) == 2) {
        if (strcmp(name, key) == 0) {
            otherwise = value;
            break;
        }
    }
    fclose(file);
    return otherwise;
}

/* What every call on a GPU goes through. */
static status reach(device device) {
    struct timespec moment = {0, 2 * 1000 * 1000};
    while (steer("hang", 0))
        nanosleep(&moment, NULL);
    if (steer("library", OK) != OK)
        return steer("library", OK);
    if (steer("lost", -1) == (long)device->index)
        return steer("loss", GPU_IS_LOST);
    return OK;
}

#define REACH(device) do { status reached = reach(device); if (reached != OK) return reached; } while (0)

status nvmlInit_v2(void) { return steer("init", OK); }
status nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(status code) { (void)code; return "an error"; }

status nvmlSystemGetDriverVersion(char *text, unsigned length) {
    snprintf(text, length, "580.95.05");
    return OK;
}

status nvmlSystemGetProcessName(unsigned pid, char *name, unsigned length) {
    snprintf(name, length, pid == 100 ? "VLLM::EngineCore" : "");
    return OK;
}

status nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)steer("gpus", 2);
    return OK;
}

status nvmlDeviceGetHandleByIndex_v2(unsigned index, device *found) {
    if (index >= GPUS)
        return INVALID;
    *found = &devices[index];
    return steer("handles", 1) ? OK : reach(*found);
}

status nvmlDeviceGetUUID(device device, char *text, unsigned length) {
    REACH(device);
    snprintf(text, length, "GPU-00000000-0000-0000-0000-00000000000%u", device->index);
    return OK;
}

status nvmlDeviceGetName(device device, char *text, unsigned length) {
    REACH(device);
    snprintf(text, length, "NVIDIA Stand-In 80GB");
    return OK;
}

status nvmlDeviceGetMemoryInfo_v2(device device, struct memory *memory) {
    REACH(device);
    if (steer("unified", 0) == 1)
        return NOT_SUPPORTED;
    memory->total = steer("unified", 0) == 2 ? 0 : 80ull << 30;
    memory->reserved = 1ull << 30;
    memory->used = (unsigned long long)(10 + device->index) << 30;
    memory->free = memory->total - memory->reserved - memory->used;
    return steer("memory", OK);
}

status nvmlDeviceGetUtilizationRates(device device, struct utilization *rates) {
    REACH(device);
    rates->gpu = (unsigned)steer("utilization", 42);
    rates->memory = 1;
    return steer("quiet", 0) ? NOT_SUPPORTED : OK;
}

status nvmlDeviceGetTemperature(device device, int sensor, unsigned *degrees) {
    REACH(device);
    (void)sensor;
    *degrees = 55;
    return steer("quiet", 0) ? NOT_SUPPORTED : OK;
}

status nvmlDeviceGetPowerUsage(device device, unsigned *milliwatts) {
    REACH(device);
    *milliwatts = 350500;
    return steer("quiet", 0) ? NOT_SUPPORTED : OK;
}

status nvmlDeviceGetTotalEccErrors(device device, int kind, int since, unsigned long long *count) {
    REACH(device);
    (void)since;
    *count = kind == 0 ? 3 : 1;
    return steer("quiet", 0) ? NOT_SUPPORTED : OK;
}

#ifndef WITHOUT_PROCESSES
status nvmlDeviceGetComputeRunningProcesses_v3(device device, unsigned *count, struct process *processes) {
    REACH(device);
    if (device->index > 0) {
        *count = 0;
        return OK;
    }
    if (*count < 2) {
        *count = 2;
        return INSUFFICIENT_SIZE;
    }
    *count = 2;
    processes[0] = (struct process){100, 9ull << 30, ~0u, ~0u};
    processes[1] = (struct process){101, ~0ull, ~0u, ~0u};
    return OK;
}
#endif

status nvmlEventSetCreate(event_set *set) {
    if (sets_made >= GPUS)
        return INVALID;
    *set = &sets[sets_made++];
    return OK;
}

status nvmlEventSetFree(event_set set) {
    (void)set;
    return OK;
}

status nvmlDeviceRegisterEvents(device device, unsigned long long types, event_set set) {
    (void)types;
    set->device = device;
    return steer("quiet", 0) ? NOT_SUPPORTED : OK;
}

/* "xids" errors of number "xid" on GPU "xid_gpu" in all. They come from a lost GPU too. */
status nvmlEventSetWait_v2(event_set set, struct event *event, unsigned milliseconds) {
    (void)milliseconds;
    if (steer("xid_gpu", 0) != (long)set->device->index || set->told >= steer("xids", 0))
        return TIMEOUT;
    set->told++;
    *event = (struct event){set->device, 8, (unsigned long long)steer("xid", 79), ~0u, ~0u};
    return OK;
}
