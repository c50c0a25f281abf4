//! A writable layer over a point of a replica, which dies, loses power and is settled into the image in pieces.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::replica::{Replica, Trouble};
use super::{Random, Stopping, open_view};
use secondsite_disk::faults::PowerLossDevice;
use secondsite_disk::{BlockDevice, Overlay, OverlayOptions, OverlayState, PointView, Work};
use secondsite_hrl::faults::MemoryLogFile;

pub struct Layer {
    pub point: u64,
    /// The point below, until the layer is settled and has let go of it.
    pub view: Option<Arc<PointView>>,
    data: Arc<PowerLossDevice>,
    map: Arc<MemoryLogFile>,
    overlay: Option<Arc<Overlay>>,
    boot: u64,
}

impl Layer {
    pub fn open(replica: &Replica, point: u64) -> Self {
        let view = Some(view_of(replica, point));
        let data = Arc::new(PowerLossDevice::new("data", replica.image.bytes().len() as u64));
        let map = Arc::new(MemoryLogFile::new("map"));
        let mut layer = Self { point, view, data, map, overlay: None, boot: 1 };
        layer.reopen(replica, false);
        layer
    }

    pub fn overlay(&self) -> &Arc<Overlay> {
        self.overlay.as_ref().expect("a layer that is open")
    }

    /// Closes it in order.
    pub fn close(&mut self) {
        self.overlay = None;
    }

    /// Opens it again after its close; it is settled.
    pub fn open_settled(&mut self, replica: &Replica) {
        self.reopen(replica, true);
    }

    fn reopen(&mut self, replica: &Replica, is_settling: bool) {
        let options = OverlayOptions {
            settle_flush_bytes: 16 << 10,
            ..OverlayOptions::new(self.boot.to_string(), self.point)
        };
        let image = is_settling.then(|| replica.device());
        let base: Arc<dyn BlockDevice> = match &self.view {
            Some(view) => view.clone(),
            None => replica.device(),
        };
        let opened = Overlay::over(base, self.data.clone(), self.map.clone(), &options, image);
        self.overlay = Some(Arc::new(opened.expect("the layer opens")));
    }

    /// The process ends, or the power goes, and it is opened again.
    pub fn die(&mut self, replica: &mut Replica, random: &mut Random) {
        let is_settling = self.overlay().state() != OverlayState::Active;
        self.overlay = None;
        if replica.trouble == Trouble::PowerLoss {
            self.data = Arc::new(self.data.crash(random.below(1 << 30)));
            self.map.lose_power(random.below(1 << 30));
            self.boot += 1;
        }
        replica.lose_power(random);
        if self.view.take().is_some() {
            self.view = Some(view_of(replica, self.point));
        }
        self.reopen(replica, is_settling);
    }

    /// Brings the image to what the layer reads, some blocks of it or all. True when that was the end.
    pub fn settle_some(&self, replica: &Replica, random: &mut Random) -> bool {
        let work = Arc::new(Work::default());
        let left = AtomicU64::new(1 + random.below(10));
        let stopping = Stopping { image: replica.device(), left, work: work.clone() };
        match self.overlay().settle(Arc::new(stopping), self.view.as_deref(), &work) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.code(), "ABORTED");
                false
            }
        }
    }
}

fn view_of(replica: &Replica, point: u64) -> Arc<PointView> {
    Arc::new(open_view(&replica.undo(), &replica.device(), point).expect("a view"))
}
