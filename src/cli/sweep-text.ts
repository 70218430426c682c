/** The small text on which `manyfold adapters compress --sweep` compares adapters: prose, instructions, numbers and code. */
export const SWEEP_TEXT = `The ferry left the island a little after seven, when the fog had lifted from the channel and the
gulls were loud again over the fish market. Marta counted the crates twice, signed the paper that the mate held out to her, and
sat down on the coil of rope behind the wheelhouse where the wind could not reach her. On the mainland the train would already
be waiting.

Question: A baker sells 48 rolls before noon and half as many after noon. How many rolls does she sell in all?
Answer: After noon she sells 48 / 2 = 24 rolls. In all she sells 48 + 24 = 72 rolls.

To repot a plant, choose a pot that is about two fingers wider than the old one. Put a layer of gravel at the bottom, so that
water can drain. Loosen the roots carefully, set the plant upright in the middle, fill the space around it with fresh soil and
press it down. Water it well and keep it out of direct sunlight for a week.

def mean(values):
    """Return the arithmetic mean of a list of numbers."""
    total = 0
    for value in values:
        total += value
    return total / len(values)

Dear customer, thank you for your message. Your order was shipped on Monday and should arrive within three working days. If the
parcel does not reach you by Friday, please write to us again and tell us the number of your order.`;
