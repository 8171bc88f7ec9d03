/** The devices on which tests of the queue run: the CPU, the one that completes late, and QUANTUNE_TEST_DEVICE where that is a GPU. */
export function testDevices(): string[] {
  process.env.QUANTUNE_TEST_DEVICES = '1'
  const asked = process.env.QUANTUNE_TEST_DEVICE
  return ['cpu', 'cpu-late', ...(asked?.startsWith('cuda') ? [asked] : [])]
}
