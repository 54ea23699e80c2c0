//! The loader and the calls over the fake CUDA and NCCL.
#![expect(clippy::unwrap_used, reason = "a test may stop anywhere")]

use dhc_fixtures::GpuLibraries;
use nvidia_sys::{Context, DeviceMemory, Driver, Event, Nccl, PinnedMemory, Stream};

fn driver(fakes: &GpuLibraries) -> Driver {
    let driver = Driver::load(Some(&fakes.cuda())).unwrap();
    driver.initialise().unwrap();
    driver
}

#[test]
fn a_device_is_known_by_its_name_address_and_uuid() {
    let folder = tempfile::tempdir().unwrap();
    let driver = driver(&GpuLibraries::in_folder(folder.path(), 2));
    assert_eq!(
        (driver.count().unwrap(), driver.version().unwrap()),
        (2, (12, 8))
    );
    let [one, other] = [0, 1].map(|ordinal| driver.device(ordinal).unwrap());
    assert_eq!(
        (one.name.as_str(), one.bdf.as_str()),
        ("NVIDIA H100 80GB HBM3", "0000:53:00.0")
    );
    assert_eq!((one.uuid.len(), one.uuid.get(..4)), (40, Some("GPU-")));
    assert_ne!(one.uuid, other.uuid);
    let error = driver.device(2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cuDeviceGet: CUDA_ERROR_INVALID_DEVICE, invalid device ordinal (101)"
    );
}

#[test]
fn memory_holds_what_is_written_and_ends_where_the_device_does() {
    let folder = tempfile::tempdir().unwrap();
    let driver = driver(&GpuLibraries::in_folder(folder.path(), 1).memory_mib(1));
    let context = Context::open(&driver, &driver.device(0).unwrap()).unwrap();
    let mut memory = DeviceMemory::<u32>::allocate(&context, 1_000).unwrap();
    memory.fill(7).unwrap();
    memory.write(998, &[1, 2]).unwrap();
    let mut back = PinnedMemory::allocate(&context, 1_000, 0).unwrap();
    memory.read(0, back.elements_mut()).unwrap();
    assert_eq!(
        (&back.elements()[..2], &back.elements()[997..]),
        (&[7, 7][..], &[7, 1, 2][..])
    );
    let (free, total) = context.memory().unwrap();
    assert_eq!((total, total - free), (1 << 20, 4_000));
    let error = DeviceMemory::<u32>::allocate(&context, 1 << 18)
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("CUDA_ERROR_OUT_OF_MEMORY"),
        "{error}"
    );
    drop(memory);
    DeviceMemory::<u32>::allocate(&context, 1 << 18).unwrap();
}

#[test]
fn one_rank_alone_gets_back_what_it_sends_when_its_mark_is_reached() {
    let folder = tempfile::tempdir().unwrap();
    let fakes = GpuLibraries::in_folder(folder.path(), 1);
    let driver = driver(&fakes);
    let context = Context::open(&driver, &driver.device(0).unwrap()).unwrap();
    let nccl = Nccl::load(Some(&fakes.nccl())).unwrap();
    assert_eq!(nccl.version().unwrap().to_string(), "2.27.3");
    let mut alone = nccl
        .join(&context, nccl.unique_id().unwrap(), 1, 0)
        .unwrap();
    let (begun, ended) = (Event::new(&context).unwrap(), Event::new(&context).unwrap());
    let stream = Stream::new(&context).unwrap();
    let mut send = DeviceMemory::<f32>::allocate(&context, 3).unwrap();
    let mut sum = DeviceMemory::<f32>::allocate(&context, 3).unwrap();
    send.write(0, &[1.0, 2.0, 3.0]).unwrap();
    begun.record(&stream).unwrap();
    alone.all_reduce(&send, &mut sum, &stream).unwrap();
    ended.record(&stream).unwrap();
    alone.wait(&ended).unwrap();
    let mut back = [0.0; 3];
    sum.read(0, &mut back).unwrap();
    assert_eq!(back, [1.0, 2.0, 3.0]);
    assert!(ended.since_us(&begun).unwrap() > 0.0);
}

#[test]
fn a_driver_that_answers_with_an_error_is_told_in_its_words() {
    let folder = tempfile::tempdir().unwrap();
    let driver = Driver::load(Some(&GpuLibraries::in_folder(folder.path(), 0).cuda())).unwrap();
    let error = driver.initialise().unwrap_err();
    assert_eq!(
        error.to_string(),
        "cuInit: CUDA_ERROR_NO_DEVICE, no CUDA-capable device is detected (100)"
    );
}

#[test]
fn a_file_that_is_no_library_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libnccl.so.2");
    std::fs::write(&path, "not a library").unwrap();
    let error = Nccl::load(Some(&path)).err().unwrap().to_string();
    assert!(
        error.contains("cannot be loaded") && error.contains("libnccl2"),
        "{error}"
    );
}
