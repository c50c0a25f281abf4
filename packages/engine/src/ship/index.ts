/** The stage that sends sealed logs: a shipment as data, and the shipper. */
export * from './shipment.js'
export * from './shipper.js'
