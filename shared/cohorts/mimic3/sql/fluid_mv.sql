-- 10. Fluids (MetaVision). tev: volume with the item's tonicity counted in.
SELECT
    f.icustay_id,
    seconds(f.starttime) AS starttime,
    seconds(f.endtime) AS endtime,
    f.itemid,
    decimal3(f.amount) AS amount,
    decimal3(f.rate) AS rate,
    decimal3(f.amount * i.factor) AS tev
FROM inputevents_mv AS f
JOIN items AS i ON i.itemid = f.itemid AND i.extract = 'fluid_mv'
WHERE f.icustay_id IS NOT NULL AND f.amount IS NOT NULL
ORDER BY f.icustay_id, starttime, endtime, f.itemid, amount, rate NULLS LAST
