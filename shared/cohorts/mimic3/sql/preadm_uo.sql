-- 9. Urine before admission to the ICU; whole minutes to admission, towards zero.
SELECT DISTINCT
    o.icustay_id,
    seconds(o.charttime) AS charttime,
    o.itemid,
    o.value,
    trunc((epoch(s.intime) - epoch(o.charttime)) / 60) AS datediff_minutes
FROM outputevents AS o
JOIN icustays AS s ON s.icustay_id = o.icustay_id
WHERE o.itemid IN (SELECT itemid FROM items WHERE extract = 'preadm_uo')
ORDER BY o.icustay_id, charttime, o.itemid, o.value NULLS LAST
